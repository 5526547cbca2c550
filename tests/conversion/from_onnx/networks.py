"""Small graphs as exporters of other frameworks write them, with dynamic dimensions that have names."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 20


def model(nodes, inputs, outputs, weights=(), opset=OPSET, functions=()) -> ModelProto:
    """A model.

    Args:
        nodes: ``(operator, inputs, outputs, attributes)``, the names as space-separated text.
        inputs: By name, ``(dtype, shape)``.
        outputs: Likewise.
        weights: Arrays by name.
    """
    made = [
        helper.make_node(kind, read.split(), written.split(), name=f"{kind}_{i}", **(more[0] if more else {}))
        for i, (kind, read, written, *more) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(weights).items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, functions=list(functions)
    )


def noise(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gated(channels: int = 96) -> ModelProto:
    """A product with what a convolution answered, and a ReLU of it, which TensorRT-RTX drops in float32."""
    return model(
        [
            ("Conv", "x k c", "h", {"pads": [1, 1, 1, 1]}),
            ("Sigmoid", "h", "s"),
            ("Mul", "x s", "p"),
            ("Relu", "p", "y"),
        ],
        {"x": ("FLOAT", ["batch", channels, 16, 16])},
        {"y": ("FLOAT", ["batch", channels, 16, 16])},
        {"k": noise(channels, channels, 3, 3) / 30, "c": noise(channels)},
    )


def perceptron() -> ModelProto:
    """Two layers on rows of eight features."""
    return model(
        [("Gemm", "x w b", "h"), ("Relu", "h", "r"), ("MatMul", "r v", "y")],
        {"x": ("FLOAT", ["batch", 8])},
        {"y": ("FLOAT", ["batch", 3])},
        {"w": noise(8, 16), "b": noise(16), "v": noise(16, 3, seed=1) / 4},
    )


def convolutional() -> ModelProto:
    """A small image classifier with a pooled head."""
    return model(
        [
            ("Conv", "image k c", "h", {"pads": [1, 1, 1, 1]}),
            ("Relu", "h", "r"),
            ("GlobalAveragePool", "r", "p"),
            ("Flatten", "p", "f"),
            ("Gemm", "f w b", "logits"),
        ],
        {"image": ("FLOAT", ["N", 3, 16, 16])},
        {"logits": ("FLOAT", ["N", 5])},
        {"k": noise(8, 3, 3, 3) / 3, "c": noise(8), "w": noise(8, 5, seed=1), "b": noise(5)},
    )


def encoder(rows: int = 40) -> ModelProto:
    """Tokens with a mask: an embedding, one attention without heads, a pooled answer and the states."""
    width = 16
    return model(
        [
            ("Gather", "table input_ids", "e"),
            ("MatMul", "e q", "query"),
            ("MatMul", "e k", "key"),
            ("Transpose", "key", "key_t", {"perm": [0, 2, 1]}),
            ("MatMul", "query key_t", "scores"),
            ("Cast", "attention_mask", "m", {"to": TensorProto.FLOAT}),
            ("Sub", "one m", "hidden"),
            ("Mul", "hidden low", "bias"),
            ("Unsqueeze", "bias axis", "bias_rows"),
            ("Add", "scores bias_rows", "masked"),
            ("Softmax", "masked", "weights", {"axis": -1}),
            ("MatMul", "weights e", "states"),
            ("ReduceMean", "states axis", "pooled", {"keepdims": 0}),
        ],
        {"input_ids": ("INT64", ["batch", "tokens"]), "attention_mask": ("INT64", ["batch", "tokens"])},
        {"pooled": ("FLOAT", ["batch", width]), "states": ("FLOAT", ["batch", "tokens", width])},
        {
            "table": noise(rows, width), "q": noise(width, width) / 4, "k": noise(width, width, seed=1) / 4,
            "one": np.float32(1), "low": np.float32(-3.4e38), "axis": np.array([1], np.int64),
        },
    )  # fmt: skip
