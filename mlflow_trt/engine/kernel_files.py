"""TensorRT-RTX's runtime cache on disk: kernels that were compiled for one engine on one kind of machine.

The first inference at each new shape compiles kernels; with the cache it only loads them, which takes a part of that
time (``benchmarks/specialization.py`` prints both). The cache is never needed for a right answer, so nothing here ever
fails a call: a file that is missing, damaged, or refused by TensorRT is as if it were not there, and one that can't be
written is a line in the debug log.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import cache
from ..errors import TrtError
from ..plan.files import verify
from ..plan.manifest import Host, PlanRecord

_logger = logging.getLogger(__name__)

_MAGIC = b"mlflow-trt kernels 1\n"


def path_for(digest: str, release: str, host: Host) -> Path:
    """Returns where the compiled kernels of a plan are kept on this machine.

    By NVIDIA's documentation of ``IRuntimeCache`` a cache belongs to a TensorRT-RTX release, a GPU model, an operating
    system and a driver's major version.

    Args:
        digest: The plan's SHA-256.
        release: TensorRT-RTX's exact release.
        host: The machine.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", (host.gpu or "gpu").lower()).strip("-")
    driver = (host.driver or host.cuda or "0").split(".")[0]
    return cache.folder() / "kernels" / f"{digest[:32]}-{release}-{gpu}-driver{driver}-{host.os or 'os'}.bin"


def read(path: Path) -> bytes | None:
    """Returns the kernels in a file that :func:`write` wrote; None if there are none that are whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    # TensorRT is not given bytes that were altered on disk: what it does with those is not documented.
    start, payload = content[: len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if start != _MAGIC + hashlib.sha256(payload).digest():
        _logger.debug("Ignoring the damaged runtime cache %s", path)
        return None
    return payload


def write(path: Path, kernels: bytes) -> bool:
    """Writes kernels, all or nothing.

    Returns:
        Whether that worked.
    """
    try:
        cache.write_atomic(path, _MAGIC + hashlib.sha256(kernels).digest() + kernels)
    except OSError as error:
        _logger.debug("The runtime cache %s can't be written: %s", path, error)
        return False
    return True


def candidates(folder: Path, record: PlanRecord, saved: Path) -> Iterator[bytes]:
    """Yields the kernels that an engine may begin with: this machine's own first, then what came with the plan.

    Args:
        folder: The model's folder.
        record: The plan.
        saved: Where this machine keeps the plan's kernels.
    """
    if content := read(saved):
        yield content
    if record.runtime_cache is not None:
        try:
            shipped = verify(folder, record.runtime_cache).read_bytes()
        except (TrtError, OSError) as error:
            _logger.debug("Ignoring the plan's runtime cache: %s", error)
        else:
            yield shipped


class Keeper:
    """Saves kernels some time after new ones were compiled, in the background.

    Args:
        path: The file.
        serialize: Returns the kernels of the moment, or None; may raise.
        delay: Seconds from the first change to the saving: a warm-up over many shapes is saved once, not at each.
    """

    def __init__(self, path: Path, serialize: Callable[[], bytes | None], delay: float = 2.0) -> None:
        self._path = path
        self._serialize = serialize
        self._delay = delay
        self._lock = threading.Lock()
        # Of its own: serializing waits for contexts that are being made, and a call that only notes a change must not.
        self._saving = threading.Lock()
        self._timer: threading.Timer | None = None
        self._changed = False
        self._saved: bytes | None = None

    def change(self) -> None:
        """New kernels may have been compiled."""
        with self._lock:
            self._changed = True
            if self._timer is None:
                self._timer = threading.Timer(self._delay, self.save)
                # Not waited for at exit: whoever owns the engine saves then.
                self._timer.daemon = True
                self._timer.start()

    def save(self) -> None:
        """Saves what has changed since the last time."""
        with self._saving:
            with self._lock:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if not self._changed:
                    return
                self._changed = False
            try:
                kernels = self._serialize()
                mark = hashlib.sha256(kernels).digest() if kernels else None
                if kernels and mark != self._saved and write(self._path, kernels):
                    self._saved = mark
            except Exception as error:
                _logger.debug("The runtime cache can't be saved: %s", error)
