"""What onnx knows of the values of a graph: their dtypes and shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

_logger = logging.getLogger(__name__)


def inferred(skeleton: ModelProto) -> dict[str, TypeProto]:
    """The types of the values of a graph, as far as its inputs and operators tell them.

    What it says of inner values and outputs itself is passed over: exporters write the sizes of their example there.
    """
    from onnx import ModelProto, helper, shape_inference

    made = ModelProto()
    made.CopyFrom(skeleton)
    del made.graph.value_info[:]
    for value in made.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        made = shape_inference.infer_shapes(made, data_prop=True)
    except Exception as error:  # of native code; what is not known decides nothing
        _logger.debug("onnx can't infer the graph's shapes: %s", error)
    graph = made.graph
    weights = {t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in graph.initializer}
    return weights | {value.name: value.type for value in (*graph.value_info, *graph.output, *graph.input)}


def sizes(types: Mapping[str, TypeProto], name: str) -> list[int | None] | None:
    """The sizes of a value, None for those that are not known; None alone: not even the rank is."""
    kind = types[name].tensor_type if name in types else None
    if kind is None or not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in kind.shape.dim]
