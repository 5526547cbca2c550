"""A graph without its large weights.

onnx's checker, shape inference and inliner work on serialized models, which protobuf limits to 2 GB. What they say of a
graph depends on no large weight: in the skeleton each of these is an input.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .graphs import used

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

SMALL = 1024
"""Elements up to which a weight stays: shapes, axes and the like decide what comes out of a graph."""


def bare(model: ModelProto) -> ModelProto:
    """A model without its weights, and without its training graphs, which say nothing of its answers."""
    from onnx import ModelProto

    made = ModelProto()
    for field, value in model.ListFields():
        if field.name not in ("graph", "training_info"):
            _set(made, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set(made.graph, field.name, value)
    return made


def skeleton(model: ModelProto) -> ModelProto:
    """A model without its large weights."""
    from onnx import helper

    made = bare(model)
    fed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_large(tensor):
            made.graph.initializer.append(tensor)
        elif tensor.name not in fed:
            made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return made


def filled(made: ModelProto, model: ModelProto) -> ModelProto:
    """A skeleton that was worked on, with the weights of the model that it was made of, as far as it still reads them.

    Args:
        made: The skeleton; it is changed.
        model: What it was made of; it is not.
    """
    fed = {value.name for value in model.graph.input}
    reads = {name for node in made.graph.node for name in used(node)} | {value.name for value in made.graph.output}
    large = [tensor for tensor in model.graph.initializer if is_large(tensor)]
    names = {tensor.name for tensor in large}
    # A weight may be an input too; without the weight it would have to be fed.
    inputs = [value for value in made.graph.input if value.name not in names or value.name in fed & reads]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(tensor for tensor in large if tensor.name in reads)
    return made


def is_large(tensor: TensorProto) -> bool:
    """Whether a weight is left out of the skeleton."""
    from onnx import TensorProto

    return bool(tensor.data_location == TensorProto.EXTERNAL) or prod(tensor.dims) > SMALL


def _set(message: Any, field: str, value: Any) -> None:
    own = getattr(message, field)
    if hasattr(own, "extend"):
        own.extend(value)
    elif hasattr(own, "CopyFrom"):
        own.CopyFrom(value)
    else:
        setattr(message, field, value)
