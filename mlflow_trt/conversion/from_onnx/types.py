"""The dtype of every value of a graph, by what ONNX's schemas say of its operators.

onnx's own inference gives up at the first operator that an opset has not in bfloat16; TensorRT takes it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .graphs import inner
from .schemas import schema
from .writer import opset

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

STANDARD = ("", "ai.onnx")
_NAMED = ("dtype", "output_dtype")
_MAKERS = ("RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
"""Operators that answer float32 where their attribute ``dtype`` says nothing else."""


def dtypes(model: ModelProto) -> dict[str, int]:
    """The dtypes, of ``TensorProto``, of the values of a model's graph and of those within it, as far as they are
    known."""
    known: dict[str, int] = {}
    _collect(model.graph, opset(model), known)
    return known


def _collect(graph: GraphProto, version: int, known: dict[str, int]) -> None:
    known.update({value.name: value.type.tensor_type.elem_type for value in graph.input})
    known.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        for each in inner(node):
            _collect(each, version, known)
        if node.op_type in ("If", "Loop", "Scan") and node.domain in STANDARD:
            own = next(inner(node)).output
            answers = [known.get(value.name) for value in (own[1:] if node.op_type == "Loop" else own)]
        else:
            answers = answered(node, [known.get(name) for name in node.input], version)
        known.update({name: dtype for name, dtype in zip(node.output, answers) if name and dtype})
    known.update({v.name: v.type.tensor_type.elem_type for v in graph.output if v.type.tensor_type.elem_type})


def answered(node: NodeProto, read: Sequence[int | None], version: int) -> list[int | None]:
    """The dtypes of the outputs of a node without graphs of its own; None for what is not known.

    Args:
        node: The node.
        read: The dtypes of what it reads.
        version: The graph's opset.
    """
    from onnx import TensorProto

    named = {a.name: a.i for a in node.attribute if a.name in _NAMED and a.i}
    operator = node.op_type
    if operator == "Cast":
        return [next(a.i for a in node.attribute if a.name == "to")]
    if operator == "CastLike":
        return [read[1]]
    if operator in ("Constant", "ConstantOfShape"):
        tensor = constant(node)
        return [_number(node) if tensor is None else tensor.data_type]
    if operator == "QuantizeLinear":
        zero = read[2] if len(read) > 2 else None
        return [zero or named.get("output_dtype") or int(TensorProto.UINT8)]
    if operator == "DequantizeLinear":
        return [named.get("output_dtype") or read[1]]
    if "dtype" in named:
        return [named["dtype"]]
    if operator in _MAKERS:
        return [int(TensorProto.FLOAT)]
    if operator == "EyeLike" or operator.startswith("Random") or operator == "Bernoulli":
        return [read[0]]
    known = schema(operator, version) if node.domain in STANDARD else None
    return [None] * len(node.output) if known is None else known.answers(node, read)


def constant(node: NodeProto) -> TensorProto | None:
    """The tensor that a node holds, also of one that is written as floating numbers."""
    from onnx import TensorProto, helper

    for attribute in node.attribute:
        if attribute.HasField("t"):
            return attribute.t
        if attribute.name == "value_float":
            return helper.make_tensor("", TensorProto.FLOAT, (), [attribute.f])
        if attribute.name == "value_floats":
            return helper.make_tensor("", TensorProto.FLOAT, (len(attribute.floats),), attribute.floats)
    return None


def _number(node: NodeProto) -> int:
    """Of a constant that is written as integers, or one of zeros that says no more."""
    from onnx import TensorProto

    integers = any(attribute.name in ("value_int", "value_ints") for attribute in node.attribute)
    return int(TensorProto.INT64 if integers else TensorProto.FLOAT)
