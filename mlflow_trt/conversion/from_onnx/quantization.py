"""Quantized graphs: what TensorRT takes of them, what becomes that, and what is refused.

TensorRT's parser takes QuantizeLinear and DequantizeLinear of INT8, FP8, INT4 and FP4 with zero points of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ConversionError, UnsupportedOperatorError
from ...plan.dtypes import TABLE
from . import weights
from .element_types import name_of
from .graphs import nodes, where
from .kinds import QUANTIZERS, VIEWS
from .model import OnnxModel
from .pruning import prune
from .skeleton import bare
from .types import constant, dtypes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_TAKEN = ("int8", *(d.name for d in TABLE if d.tensorrt in ("FP8", "INT4", "FP4")))
_INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_AGAIN = (
    "quantize it again, symmetrically: onnxruntime.quantization.quantize_static(…, quant_format=QuantFormat.QDQ, "
    "activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, extra_options={'ActivationSymmetric': True, "
    "'WeightSymmetric': True}); or convert the graph that was not quantized, with precision='fp16'"
)


def prepared(model: OnnxModel) -> OnnxModel:
    """A graph whose quantized values TensorRT's parser takes; one that is not quantized stays as it is.

    Biases that are held as int32, as ``quantize_static`` does, become the float32 that they stand for.

    Raises:
        UnsupportedOperatorError: The graph computes in integers.
        ConversionError: It is quantized to a dtype or with zero points that TensorRT has not.
    """
    quantizers = [node for node in nodes(model.proto) if node.op_type in QUANTIZERS]
    _check_operators(model.proto)
    if not quantizers:
        return model
    constants = _constants(model.proto)
    biases = [node for node in model.proto.graph.node if _is_int32(node, constants)]
    folded = {node.output[0] for node in biases}
    _check(quantizers, folded, constants, model)
    return _dequantized(model, biases, constants) if biases else model


def int8_convolutions(model: OnnxModel) -> tuple[str, ...]:
    """Convolutions of INT8 weights and INT8 activations, which the compiler of TensorRT-RTX (1.6.1.120) does not take.

    Returns:
        Names of their nodes; those of which one operand alone is quantized are not among them.
    """
    return tuple(node.name or node.output[0] for node in _int8_convolutions(model))


def check_int8_convolutions(model: OnnxModel) -> None:
    """Checks a graph for TensorRT-RTX.

    Raises:
        ConversionError: It has convolutions in INT8.
    """
    names = int8_convolutions(model)
    if names:
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        count = f"{len(names)} convolution" + "s" * (len(names) != 1)
        raise ConversionError(
            f"The graph has {count} of INT8 weights and activations ({listed}), and TensorRT-RTX has none.",
            "convolutions in FP8, or in float16; INT8 in matrix products alone",
            "convert the graph that was not quantized, with precision='fp16'; or quantize it without its convolutions "
            "(op_types_to_quantize=['MatMul', 'Gemm']), or to FP8",
        )


def _check_operators(model: ModelProto) -> None:
    found = [node for node in nodes(model) if node.op_type in _INTEGER_OPERATORS]
    if found:
        operators = tuple(dict.fromkeys(f"onnx.{node.op_type}" for node in found))
        raise UnsupportedOperatorError(
            f"The graph computes in integers: {_listed(found)}.",
            "a graph in floating point, or one with QuantizeLinear and DequantizeLinear around its operators (QDQ)",
            _AGAIN,
            operators,
        )


def _check(
    quantizers: Sequence[NodeProto], folded: set[str], constants: dict[str, TensorProto], model: OnnxModel
) -> None:
    known = dtypes(model.proto)
    others: dict[str, list[NodeProto]] = {}
    shifted = []
    for node in quantizers:
        if node.output[0] in folded:
            continue
        kind = name_of(known.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0], 0))
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if kind is not None and kind not in _TAKEN:
            others.setdefault(kind, []).append(node)
        elif zero is not None and np.any(weights.array(zero, model.folder).astype(np.float32)):
            shifted.append(node)
    if others:
        found = [node for each in others.values() for node in each]
        raise ConversionError(
            f"The graph is quantized to {' and '.join(sorted(others))}: {_listed(found)}.",
            f"one of {', '.join(_TAKEN)}, with zero points of 0",
            _AGAIN,
        )
    if shifted:
        raise ConversionError(
            f"The graph is quantized with zero points other than 0: {_listed(shifted)}.",
            "symmetric quantization: TensorRT has no zero points",
            _AGAIN,
        )


def _listed(found: Sequence[NodeProto]) -> str:
    return ", ".join(where(node) for node in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and (tensor := constant(node)) is not None:
            held[node.output[0]] = tensor
    return held


def _is_int32(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    from onnx import TensorProto

    if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input if name):
        return False
    return bool(constants[node.input[0]].data_type == TensorProto.INT32)


def _dequantized(model: OnnxModel, found: Iterable[NodeProto], constants: dict[str, TensorProto]) -> OnnxModel:
    """A graph that holds the floating values of weights which it held quantized."""
    made = bare(model.proto)
    made.graph.initializer.extend(model.proto.graph.initializer)
    gone = {node.output[0]: node for node in found}
    kept = [node for node in made.graph.node if not (node.output and node.output[0] in gone)]
    for name, node in gone.items():
        made.graph.initializer.append(_values(name, node, constants, model))
    del made.graph.node[:]
    made.graph.node.extend(kept)
    prune(made)
    return OnnxModel(made, model.folder)


def _values(name: str, node: NodeProto, constants: dict[str, TensorProto], model: OnnxModel) -> TensorProto:
    """What quantized weights stand for; with one scale, or one for each place on an axis."""
    from onnx import numpy_helper

    quantized, scale, *zero = (weights.array(constants[read], model.folder) for read in node.input if read)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * quantized.ndim
    if scale.size > 1:
        shape[axis] = -1
    factor = scale.astype(np.float64).reshape(shape if scale.size > 1 else ())
    shift = zero[0].astype(np.float64).reshape(factor.shape) if zero else 0.0
    values = (quantized.astype(np.float64) - shift) * factor
    whole = numpy_helper.from_array(values.astype(np.float32), name)
    return weights.in_dtype(whole, constants[node.input[1]].data_type, None)


def _int8_convolutions(model: OnnxModel) -> list[NodeProto]:
    producers = {output: node for node in model.proto.graph.node for output in node.output if output}
    known = dtypes(model.proto)
    found = (node for node in model.proto.graph.node if node.op_type in _CONVOLUTIONS)
    return [node for node in found if all(_is_int8(name, producers, known) for name in node.input[:2])]


def _is_int8(name: str, producers: dict[str, NodeProto], known: dict[str, int]) -> bool:
    """Whether a value comes of INT8 by what TensorRT moves the quantizers across."""
    from onnx import TensorProto

    while (node := producers.get(name)) is not None:
        if node.op_type == "DequantizeLinear":
            return bool(known.get(node.input[0]) == TensorProto.INT8)
        pooled = node.op_type == "MaxPool" and known.get(name) != TensorProto.BFLOAT16
        if not (node.op_type in (*VIEWS, "Cast") or pooled):
            return False
        name = node.input[0]
    return False
