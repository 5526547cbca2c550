"""What was served last, kept in the cache folder: a server may start from it while the registry is away.

Only asked for (``--offline-start``), and only where the registry gave no answer at all: one that says that a version is
gone, or not this server's to read, is believed. Which version an alias named, and which manifest a version had, is kept
for each registry apart; the files themselves are checked against the manifest's digests, and the manifest against its
own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from ... import cache
from ...errors import TrtError

_logger = logging.getLogger(__name__)


def remember(uri: str, **what: str | None) -> None:
    """Keeps something about a URI; a cache that can't be written is no reason to fail.

    Args:
        uri: As it is served.
        what: ``version``: the URI that it meant; or ``manifest``: that one's digest, and ``mlmodel``.
    """
    content = json.dumps({"uri": uri, **what}).encode()
    try:
        path = _path(uri)
        if not path.is_file() or path.read_bytes() != content:
            cache.write_atomic(path, content)
    except OSError as error:
        _logger.warning("What is served can't be remembered: %s", error, extra={"event": "not_remembered", "uri": uri})


def recall(uri: str) -> dict[str, Any]:
    """Returns what was kept about a URI; empty: nothing was."""
    try:
        kept = json.loads(_path(uri).read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("uri") == uri else {}


def answered(error: BaseException | None) -> bool:
    """Whether a registry or store gave an answer, of which an error tells; or else was not reached."""
    from mlflow.exceptions import MlflowException

    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, MlflowException) and not isinstance(error, TrtError):
            status = error.get_http_status_code()
        if isinstance(error, FileNotFoundError) or (isinstance(status, int) and status < 500):
            return True
        error = error.__cause__
    return False


def _path(uri: str) -> Path:
    import mlflow

    stores = [mlflow.get_tracking_uri(), mlflow.get_registry_uri(), uri]
    # Hashed, also because such a URI may hold a password.
    return cache.folder() / "served" / f"{hashlib.sha256(json.dumps(stores).encode()).hexdigest()}.json"
