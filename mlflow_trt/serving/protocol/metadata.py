"""What the protocol tells of a model: its inputs and outputs, and the shapes that calls may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...plan.manifest import Interface, Profile, Tensor
from .datatypes import NAMES


def describe(
    interface: Interface, *, model: str, versions: Sequence[str], platform: str, profiles: Sequence[Profile]
) -> dict[str, Any]:
    """Returns a model's metadata, as ``GET /v2/models/NAME`` answers it.

    Args:
        interface: The model's.
        model: Its name.
        versions: Those that are served.
        platform: What runs it.
        profiles: The shapes that calls may have; the protocol has no word for them and lets a server add its own.
    """
    return {
        "name": model,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_metadata(tensor) for tensor in interface.inputs],
        "outputs": [_metadata(tensor) for tensor in interface.outputs],
        "profiles": [{name: bounds.model_dump(mode="json") for name, bounds in p.items()} for p in profiles],
    }


def _metadata(tensor: Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": NAMES[tensor.dtype], "shape": shape}
