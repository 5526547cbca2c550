"""Arithmetic in int8."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from mlflow_trt.conversion.from_onnx.integers import check
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.conversion.from_onnx.plain import plain
from mlflow_trt.errors import ConversionError

from .made import answers, built, linear, model, node, value

TO_INT8, TO_FLOAT = node("Cast", ["x"], ["z"], to=TensorProto.INT8), node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sum"])
def test_what_wraps_in_onnx_is_refused_though_the_parser_takes_it(operator):
    proto = model([TO_INT8, node(operator, ["z", "z"], ["q"]), TO_FLOAT], [value("x", (2, 4))])
    with pytest.raises(ConversionError, match=f"{operator} at q computes in int8"):
        plain(read(proto))
    if operator != "Sum":
        assert answers(proto, x=np.full((2, 4), 100, np.float32))["y"][0, 0] == {"Add": -56, "Mul": 16}[operator]
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    assert built(proto) == [("y", "float32", [2, 4])]


def test_what_only_moves_or_compares_is_taken():
    moving = [node("Transpose", ["z"], ["t"]), node("Max", ["t", "t"], ["m"]), node("Relu", ["m"], ["q"])]
    check(model([TO_INT8, *moving, TO_FLOAT]))
    check(linear())


def test_quantizers_are_taken():
    weights = {"scale": np.array(0.1, np.float32), "w": np.ones((4, 3), np.int8)}
    nodes = [
        node("QuantizeLinear", ["x", "scale"], ["z"]),
        node("DequantizeLinear", ["z", "scale"], ["t"]),
        node("DequantizeLinear", ["w", "scale"], ["v"]),
        node("MatMul", ["t", "v"], ["m"]),
        node("Add", ["m", "scale"], ["y"]),
    ]
    plain(read(model(nodes, weights=weights, opset=13)))
