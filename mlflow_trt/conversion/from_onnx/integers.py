"""Arithmetic in int8, which ONNX wraps around: 100 + 100 is -56.

TensorRT's parser takes it, and int8 is a quantized float there, whose sums have no reason to wrap. In int16 and in
unsigned integers it takes no arithmetic, and says so itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConversionError
from .graphs import nodes, where
from .inference import inferred

if TYPE_CHECKING:
    from onnx import ModelProto

WRAPPING = (
    *("Abs", "Add", "BitShift", "CumSum", "Div", "Einsum", "Gemm", "MatMul", "Mul", "Neg", "Pow", "ReduceL1"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Sub", "Sum"),
)
"""Operators whose results may leave the range of their operands."""


def check(skeleton: ModelProto) -> None:
    """Checks that nothing is computed in int8 but by quantizers.

    Raises:
        ConversionError: Something is.
    """
    from onnx import TensorProto

    if not any(node.op_type in WRAPPING for node in nodes(skeleton)):
        return
    types = inferred(skeleton)
    narrow = {name for name, kind in types.items() if kind.tensor_type.elem_type == TensorProto.INT8}
    for node in nodes(skeleton):
        if node.op_type in WRAPPING and narrow.intersection((*node.input, *node.output)):
            raise ConversionError(
                f"{where(node)} computes in int8, which wraps around, and TensorRT has no such arithmetic.",
                "values that are made int32 or float before they are computed with",
                "put a Cast before it; a network that was quantized has QuantizeLinear and DequantizeLinear around "
                "operators of floats",
            )
