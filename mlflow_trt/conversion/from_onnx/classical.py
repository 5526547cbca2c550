"""Scikit-learn's operators (``ai.onnx.ml``), as skl2onnx writes them, in standard ones, which TensorRT's parser takes.

They answer what ONNX Runtime answers, in float32, as the operators do. Probabilities, which ZipMap makes dictionaries
of, stay a tensor with a column for each class; an output of class names is left out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...errors import UnsupportedOperatorError
from .classical_forms import FORMS, NotKnown
from .graphs import where
from .inference import inferred
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_logger = logging.getLogger(__name__)

DOMAIN = "ai.onnx.ml"
OLDEST_OPSET = 9
"""The first with a Where. skl2onnx names the oldest opset that has all operators of the graph."""


def rewritten(skeleton: ModelProto) -> ModelProto:
    """A model without these operators, but for those that make strings, which nothing reads any more.

    Args:
        skeleton: The model; it is not changed.

    Raises:
        UnsupportedOperatorError: It has trees, support vectors and the like, or a form that is not known.
    """
    from onnx import ModelProto

    if not any(node.domain == DOMAIN for node in skeleton.graph.node):
        return skeleton
    made = ModelProto()
    made.CopyFrom(skeleton)
    writer = Writer(made)
    if writer.opset < OLDEST_OPSET:
        raise UnsupportedOperatorError(
            f"The model has operators of {DOMAIN} in opset {writer.opset}.",
            f"opset {OLDEST_OPSET} or newer",
            f"convert it again: skl2onnx.to_onnx(model, X, target_opset={{'': 17, '{DOMAIN}': 3}})",
            _operators(skeleton),
        )
    types = inferred(made)
    strings = _strings(made, types)
    for node in made.graph.node:
        if node.domain != DOMAIN or (node.op_type != "LinearClassifier" and strings.intersection(node.output)):
            writer.nodes.append(node)
            continue
        if node.op_type not in FORMS:
            raise _refused(node, "standard operators do not compute what it does")
        try:
            FORMS[node.op_type](node, attributes(node), writer, types)
        except NotKnown as error:
            raise _refused(node, str(error)) from None
    classes = _classes(made)
    del made.graph.node[:]
    made.graph.node.extend(writer.nodes)
    _make_tensors(made, strings, classes)
    return made


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes: numbers, bytes, and lists of them."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _strings(model: ModelProto, types: Any) -> set[str]:
    """The values that are strings."""
    from onnx import TensorProto

    strings = {name for name, kind in types.items() if kind.tensor_type.elem_type == TensorProto.STRING}
    return strings | {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.STRING}


def _operators(model: ModelProto) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"onnx.{DOMAIN}.{n.op_type}" for n in model.graph.node if n.domain == DOMAIN))


def _refused(node: NodeProto, why: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"The model has {where(node)}: {why}.",
        f"of {DOMAIN}: {', '.join(sorted(FORMS))}",
        "leave trees, support vectors and neighbours to ONNX Runtime, or have them written as tensor operations "
        "(hummingbird-ml writes them for PyTorch) and convert those; preparation of data can stay before the engine",
        (f"onnx.{DOMAIN}.{node.op_type}",),
    )


def _classes(model: ModelProto) -> list[str]:
    """The names of the classes, in the order of their columns."""
    from onnx import TensorProto

    for node in model.graph.node:
        if names := attributes(node).get("classlabels_strings"):
            return [name.decode() for name in names]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            return [name.decode() for name in tensor.string_data]
    return []


def _make_tensors(model: ModelProto, strings: set[str], classes: list[str]) -> None:
    """Leaves out outputs that are strings, and declares those tensors that were dictionaries."""
    from onnx import TensorProto, helper

    kept = []
    for value in model.graph.output:
        if value.name in strings:
            _logger.warning(
                "The output %s is left out: it is the name of a class, and an engine answers no strings.%s",
                value.name,
                f" The classes, in the order of the columns of the probabilities: {', '.join(classes)}."
                * bool(classes),
            )
            continue
        if value.type.HasField("sequence_type"):
            _logger.info("The output %s is a tensor instead of dictionaries: a column for each class.", value.name)
            value = helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None, None])
        kept.append(value)
    del model.graph.output[:]
    model.graph.output.extend(kept)
