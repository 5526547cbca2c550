"""A graph with some of its dtypes replaced by others throughout, its inner graphs included.

What was of one dtype is of one dtype again, so a valid graph stays valid, and no rule for single operators is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import weights
from .skeleton import bare

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")
"""Attributes of standard operators that name a dtype."""


def retyped(model: ModelProto, dtypes: Mapping[int, int], folder: Path | None) -> ModelProto:
    """Replaces dtypes.

    Args:
        model: The model; it stays as it is.
        dtypes: For a floating dtype of ``TensorProto``, the one that replaces it.
        folder: Where the weights lie that lie in files; those that are replaced are within the new model.

    Returns:
        A model without its ``value_info``, which is of the dtypes that it had.
    """
    made = bare(model)
    _retype(made.graph, dtypes, folder)
    for tensor in model.graph.initializer:
        new = dtypes.get(tensor.data_type, tensor.data_type)
        made.graph.initializer.append(tensor if new == tensor.data_type else weights.in_dtype(tensor, new, folder))
    return made


def _retype(graph: GraphProto, dtypes: Mapping[int, int], folder: Path | None) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        retype_value(value, dtypes)
    for tensor in graph.initializer:
        if tensor.data_type in dtypes:
            tensor.CopyFrom(weights.in_dtype(tensor, dtypes[tensor.data_type], folder))
    for node in graph.node:
        _retype_node(node, dtypes, folder)


def _retype_node(node: NodeProto, dtypes: Mapping[int, int], folder: Path | None) -> None:
    for attribute in node.attribute:
        if attribute.name in DTYPE_ATTRIBUTES and attribute.i in dtypes:
            attribute.i = dtypes[attribute.i]
        elif attribute.HasField("t") and attribute.t.data_type in dtypes:
            attribute.t.CopyFrom(weights.in_dtype(attribute.t, dtypes[attribute.t.data_type], folder))
        elif attribute.HasField("g"):
            _retype(attribute.g, dtypes, folder)


def retype_value(value: ValueInfoProto, dtypes: Mapping[int, int]) -> None:
    """Replaces the dtype of an input or output."""
    kind = value.type.tensor_type
    if kind.elem_type in dtypes:
        kind.elem_type = dtypes[kind.elem_type]
