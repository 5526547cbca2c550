"""The dtype of every value of a graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from mlflow_trt.conversion.from_onnx.types import constant, dtypes

from .written import model, rows

BODY = """
    a = MatMul (x, w)  s = Shape (a)  n = Cast <to = 1> (s)  b = Greater (a, x)  c = Where (b, a, x)
    k = Constant <value_int = 3> ()  f = Constant <value_float = 0.5> ()  o = ConstantOfShape (s)
    top, places = TopK (a, one)  like = CastLike (s, a)  e = EyeLike <dtype = 10> (a)  r = RandomNormal <shape = [2]> ()
    q = QuantizeLinear (c, scale)  d = DequantizeLinear (q, scale)
    i = If (flag) < then_branch = t () => (int64[N] p) { p = Identity (s) },
                    else_branch = l () => (int64[N] m) { m = Neg (s) } >
    y = Identity (d)
"""
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def test_each_operator_has_its_say():
    own = model(f"g (float[8, 8] x, bool flag) => (float[8, 8] y) {{ {BODY} }}", w=rows(8, 8), one=np.array([1]),
                scale=np.float32(1))  # fmt: skip
    known = dtypes(own.proto)
    wanted = {"a": FLOAT, "s": INT64, "n": FLOAT, "b": BOOL, "c": FLOAT, "k": INT64, "f": FLOAT, "o": FLOAT,
              "top": FLOAT, "places": INT64, "like": FLOAT, "e": TensorProto.FLOAT16, "r": FLOAT,
              "q": TensorProto.UINT8, "d": FLOAT, "i": INT64, "p": INT64, "m": INT64, "y": FLOAT}  # fmt: skip
    assert {name: known[name] for name in wanted} == wanted


def test_bfloat16_in_an_opset_that_has_not():
    """onnx's own inference refuses it."""
    own = model("g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { b = Cast <to = 16> (x)  c = Cast <to = 16> (w) "
                "a = Conv (b, c)  y = Cast <to = 1> (a) }", opset=13, w=rows(2, 3, 1, 1))  # fmt: skip
    assert dtypes(own.proto)["a"] == TensorProto.BFLOAT16


def test_numbers_of_constants():
    node = helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0])
    assert constant(node).float_data == [1, 2]
    assert constant(helper.make_node("Relu", ["x"], ["y"])) is None
