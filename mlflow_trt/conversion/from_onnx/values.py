"""Values for a graph's inputs: the caller's own where there are some, else made up from a fixed seed.

Integers that look up rows of a table stay within it, masks are ones and then zeros, positions count; all else is noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...plan.dtypes import STORAGE
from .inputs import FedInput

if TYPE_CHECKING:
    from onnx import ModelProto

_MOVED = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Identity", "Transpose", "Slice", "Concat")
"""What integers may go through before they are used as indices."""


@dataclass(frozen=True)
class InputRole:
    """What an input's numbers are for."""

    kind: Literal["indices", "positions", "mask"]
    rows: int | None = None
    """Of the smallest table that they look up."""


def roles(model: ModelProto) -> dict[str, InputRole]:
    """What the graph and its names say of its inputs.

    Args:
        model: The graph; weights may lie outside, their shapes are enough.
    """
    tables = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    found: dict[str, InputRole] = {}
    for value in model.graph.input:
        if value.name in tables:
            continue
        floating = value.type.tensor_type.elem_type in _FLOATING
        rows = None if floating else _rows(model, value.name, tables)
        name = value.name.lower()
        if "mask" in name and rows is None:
            found[value.name] = InputRole("mask")
        elif rows is not None:
            found[value.name] = InputRole("positions" if "position" in name else "indices", rows)
    return found


_FLOATING = (1, 10, 11, 16)
"""FLOAT, FLOAT16, DOUBLE, BFLOAT16."""


def _rows(model: ModelProto, name: str, tables: Mapping[str, int]) -> int | None:
    """The rows of the smallest table that an input's numbers, as they are, look up by Gather along its first axis."""
    reached, rows = {name}, []
    for node in model.graph.node:  # in topological order
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in reached:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if axis == 0 and node.input[0] in tables:
                rows.append(tables[node.input[0]])
        elif node.op_type in _MOVED and reached.intersection(node.input[: None if node.op_type == "Concat" else 1]):
            reached.update(node.output)
    return min(rows, default=None)


def synthesize(
    spec: FedInput,
    shape: Sequence[int],
    generator: np.random.Generator,
    source: np.ndarray | None = None,
    role: InputRole | None = None,
) -> np.ndarray:
    """Makes an array.

    Args:
        spec: Its dtype, and maybe an example.
        shape: Its sizes.
        generator: Where random values come from.
        source: Real values, repeated and cropped to the shape; default: the spec's example.
        role: What its numbers are for, where that is known.
    """
    dtype = STORAGE[spec.dtype]
    source = source if source is not None else spec.example
    if source is not None and source.ndim == len(shape) and (source.size or 0 in shape):
        return fit(source, shape).astype(dtype)
    if role is not None:
        return _of_role(role, shape, generator, dtype).astype(dtype)
    if dtype.kind == "b" or dtype.kind in "iu":
        return generator.integers(0, 2, tuple(shape)).astype(dtype)
    return np.asarray(generator.standard_normal(tuple(shape), dtype=np.float32)).astype(dtype)


def _of_role(role: InputRole, shape: Sequence[int], generator: np.random.Generator, dtype: np.dtype) -> np.ndarray:
    if role.kind == "indices":
        return generator.integers(0, role.rows or 2, tuple(shape))
    length = shape[-1] if shape else 1
    places = np.broadcast_to(np.arange(length), tuple(shape))
    if role.kind == "positions":
        return places % role.rows if role.rows else places
    # Lengths differ from row to row, and no row may be masked entirely.
    lengths = generator.integers(1, max(2, length), (*shape[:-1], 1)) if shape else np.asarray(1)
    if dtype.kind != "b" and len(shape) > 1 and shape[0] > 1:
        lengths[0] = length
    return places < lengths


def fit(source: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Repeats and crops an array to a shape of equal rank."""
    for axis, size in enumerate(shape):
        source = np.take(source, np.arange(size) % max(1, source.shape[axis]), axis=axis)
    return np.asarray(source, order="C")
