"""What standard operators do with floating dtypes, as far as a change of precision must know.

The rest is in ONNX's own schemas: which operands of an operator are of one dtype, and which dtypes it has.
"""

from __future__ import annotations

ARITHMETIC = frozenset(
    (
        *("Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm", "Einsum"),
        *("Attention", "LSTM", "GRU", "RNN"),
    )
)
"""Operators that carry a network's arithmetic: those that are asked for in a precision."""

PRODUCTS = {"GRU": 2}
"""How many pairs of matrix products TensorRT's parser makes of an operator: one, of those that are not here."""

IN_FLOAT32 = frozenset(
    (
        # Sums of squares and of exponentials leave float16's range at 256 and at 11.
        *("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "CumSum", "CumProd"),
        *("LpNormalization", "LpPool", "GlobalLpPool", "MeanVarianceNormalization"),
        # Coordinates: float16 has steps of half a pixel from 1024 on.
        *("RoiAlign", "MaxRoiPool", "NonMaxSuppression", "AffineGrid"),
        # Numbers that are made, not computed: from sizes and seeds.
        *("Range", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "DFT", "STFT", "Det"),
    )
)
"""Operators that are computed in float32 in any precision."""

WITHOUT_HALF = {
    "float16": frozenset(("Celu",)),
    "bfloat16": frozenset(("Celu", "GRU", "HardSwish", "Mish")),
}
"""Operators that ONNX has in a dtype and TensorRT's parser (of TensorRT-RTX 1.6) does not take in it."""

PEEPHOLES = ("LSTM", 7)
"""The operand with which the parser takes an LSTM in float32 alone."""

PARAMETERS = frozenset(
    (*(("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Dropout", 1), ("OneHot", 0), ("OneHot", 1)),)
)
"""Operators and places of floating operands that say how, not with what, they compute: float32."""

VIEWS = frozenset(
    ("Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Slice", "Gather", "Tile")
)
"""Operators that only move the numbers of their first operand."""

QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))

SHAPES = frozenset(("Shape", "Size"))
"""Operators that read no numbers of their operand."""

RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)

ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Mod", "Where", "PRelu"),
        *("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sign", "Floor", "Ceil", "Round"),
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Clip", "Shrink"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Identity", "Dropout"),
        *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh"),
    )
)
"""Operators that answer, at each place, by the numbers at that place alone."""
