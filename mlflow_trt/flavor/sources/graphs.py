"""Whether what the caller gave is a graph in ONNX, in memory or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...plan import lookalikes

SUFFIX = ".onnx"


def is_graph(value: Any) -> bool:
    """Whether a value is a graph in ONNX: a ``ModelProto``, its bytes, or the path of its file.

    A path that ends in ``.onnx`` is one whatever the file holds, so that a fault of it is told as a graph's.
    """
    if isinstance(value, bytes):
        return _looks_so(value)
    if isinstance(value, (str, Path)):
        path = Path(value)
        if path.is_file():
            with path.open("rb") as file:
                return path.suffix == SUFFIX or _looks_so(file.read(lookalikes.START_BYTES))
        return path.suffix == SUFFIX and ":/" not in str(value)
    kind = type(value)
    return kind.__name__ == "ModelProto" and kind.__module__.startswith("onnx")


def _looks_so(start: bytes) -> bool:
    known = lookalikes.recognize(start)
    return known is not None and known.suffix == SUFFIX
