"""What of an exported program's file is pickled, told without unpickling any of it.

``torch.export.load`` reads a graph and settings as JSON and weights as raw bytes, but unpickles other constants and
example inputs without limits, and loads what TorchInductor compiled as code. Nothing here makes a hostile file safe: of
the JSON too it evaluates the expressions of symbolic sizes (``sympy.sympify``).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONFIG = re.compile(r"data/(?:weights|constants)/[^/]+_config\.json")
_TEXT = re.compile(r"models/[^/]+\.json|extra/.*|archive_format|archive_version|byteorder|\.data/[^/]+")
"""What is read as text or not at all."""
_TENSORS = ("weight_", "tensor_")
"""How records begin that hold a tensor; others hold objects."""


def records(path: Path) -> list[str]:
    """The records of an exported program that are pickled objects, or compiled code; empty: there are none.

    Pickles that torch's own restricted unpickler reads, which makes nothing but tensors and plain containers, are none.

    Args:
        path: A file that ``torch.export.save`` wrote. One of another layout, such as torch 2.7 wrote, counts as
            pickled as a whole.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        archive = PT2ArchiveReader(str(path))  # the loader's own: what is read here is what it will read
        names = archive.get_file_names()
    except Exception:
        return [path.name]
    configs = {name: archive.read_bytes(name) for name in names if _CONFIG.fullmatch(name)}
    raw = raw_tensors(configs)
    return [name for name in names if name not in configs and not _harmless(archive, name, raw)]


def raw_tensors(configs: Mapping[str, bytes]) -> set[str]:
    """The records, in lower case, that every configuration of an archive has read as bytes alone.

    Args:
        configs: Contents of ``data/weights/…_config.json`` and ``data/constants/…_config.json``, by their names.
    """
    raw: set[str] = set()
    pickled: set[str] = set()
    for name, content in configs.items():
        folder = name.rpartition("/")[0]
        for entry in _entries(content):
            # Records are found whatever their case.
            record = f"{folder}/{entry.get('path_name')}".lower()
            as_bytes = entry.get("use_pickle") is False and record.startswith(tuple(f"{folder}/{t}" for t in _TENSORS))
            (raw if as_bytes else pickled).add(record)
    return raw - pickled


def _entries(config: bytes) -> list[dict[str, Any]]:
    try:
        return [entry for entry in json.loads(config)["config"].values() if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []  # which the loader can't read either


def _harmless(archive: Any, name: str, raw: set[str]) -> bool:
    import torch

    if name.lower() in raw or _TEXT.fullmatch(name):
        return True
    try:
        torch.load(io.BytesIO(archive.read_bytes(name)), map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True
