"""The local cache folder: compiled kernels and fetched plans, safe to delete at any time.

Nothing in it is ever needed for a right answer: it saves time only. Several processes share it, so every file is
written beside its final name and renamed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

VARIABLE = "MLFLOW_TRT_CACHE"


def folder() -> Path:
    """Returns the folder: the environment variable ``MLFLOW_TRT_CACHE``, or ``~/.cache/mlflow-trt``.

    The folder need not exist. ``XDG_CACHE_HOME`` is honoured, as other tools' caches do.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "mlflow-trt"


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: Its folders are made.
        content: The whole file.

    Raises:
        OSError: The folder can't be written, or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
