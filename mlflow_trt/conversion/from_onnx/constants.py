"""Values of a graph that do not depend on what it is fed: constants, known sizes, and what is computed of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .checks import RANDOM, STANDARD
from .graphs import inner, used
from .inference import sizes
from .writer import opset

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto

_logger = logging.getLogger(__name__)

_MOST = 4096
"""Elements of the largest value that is computed: shapes and conditions are small."""

_MOVES = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only move the elements of their first input, and Concat, which moves those of all."""
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"),
    *("Not", "Cast", "Neg", "Abs"),
)


@dataclass(frozen=True)
class _Value:
    """An array, and which of its elements are known; the others are 1."""

    array: np.ndarray
    known: np.ndarray


def constants(skeleton: ModelProto, types: Mapping[str, TypeProto], wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Computes values of a graph.

    Args:
        skeleton: The graph.
        types: What is known of its values: :func:`.inference.inferred`.
        wanted: Their names.

    Returns:
        Those that are known in full.
    """
    from onnx import numpy_helper

    wanted = set(wanted)
    nodes, needed = [], set(wanted)
    for node in reversed(skeleton.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(used(node))
    values = {
        tensor.name: _whole(numpy_helper.to_array(tensor))
        for tensor in skeleton.graph.initializer
        if tensor.name in needed
    }
    version = opset(skeleton)
    for node in reversed(nodes):
        value = _value(node, values, types, version)
        if value is not None and value.array.size <= _MOST:
            values[node.output[0]] = value
    return {name: values[name].array for name in wanted if name in values and values[name].known.all()}


def _value(
    node: NodeProto, values: Mapping[str, _Value], types: Mapping[str, TypeProto], version: int
) -> _Value | None:
    if node.domain not in STANDARD or node.op_type in RANDOM or len(node.output) != 1 or any(inner(node)):
        return None
    if node.op_type in ("Shape", "Size"):
        return _measured(node, types)
    if not all(name in values for name in node.input if name):
        return None
    inputs = {name: values[name] for name in node.input if name}
    result = _computed(node, {name: value.array for name, value in inputs.items()}, version)
    if result is None or all(value.known.all() for value in inputs.values()):
        return None if result is None else _whole(result)
    known = _known(node, inputs, version)
    return _Value(result, known.astype(bool)) if known is not None and known.shape == result.shape else None


def _known(node: NodeProto, inputs: Mapping[str, _Value], version: int) -> np.ndarray | None:
    """Which elements of a result are known, where not all of the operands' are."""
    if node.op_type in _ELEMENTWISE:
        known = np.broadcast_arrays(*(value.known for value in inputs.values()))
        return np.asarray(np.logical_and.reduce(known))
    moved = list(node.input) if node.op_type == "Concat" else list(node.input[:1])
    if node.op_type in _MOVES and all(value.known.all() for name, value in inputs.items() if name not in moved):
        marks = {name: v.known.astype(np.int64) if name in moved else v.array for name, v in inputs.items()}
        return _computed(node, marks, version)
    return None


def _whole(array: np.ndarray) -> _Value:
    return _Value(array, np.ones(array.shape, bool))


def _measured(node: NodeProto, types: Mapping[str, TypeProto]) -> _Value | None:
    shape = sizes(types, node.input[0])
    if shape is None:
        return None
    if node.op_type == "Size":
        return None if None in shape else _whole(np.array(np.prod(np.array(shape, np.int64)), np.int64))
    own = {attribute.name: attribute.i for attribute in node.attribute}
    shape = shape[own.get("start", 0) : own.get("end", len(shape))]
    known = np.array([size is not None for size in shape], bool)
    return _Value(np.array([1 if size is None else size for size in shape], np.int64), known)


def _computed(node: NodeProto, inputs: Mapping[str, np.ndarray], version: int) -> np.ndarray | None:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            result = ReferenceEvaluator(node, opsets={"": version}).run(None, dict(inputs))[0]
    except Exception as error:  # whatever it can't compute is not known
        _logger.debug("onnx can't compute %s: %s", node.op_type, error)
        return None
    return np.asarray(result) if isinstance(result, (np.ndarray, np.generic)) else None
