"""Dtypes replaced throughout."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from mlflow_trt.conversion.from_onnx.model import OnnxModel
from mlflow_trt.conversion.from_onnx.retyped import retyped
from mlflow_trt.conversion.from_onnx.types import dtypes

from .written import answers, checked, model

BODY = """
    c = Constant <value = double {0.5}> ()  z = ConstantOfShape <value = double[1] {2.0}> (shape)
    a = MatMul (x, w)  s = ReduceSum <keepdims = 0> (a)  positive = Greater (s, c)
    r = If (positive) <
        then_branch = t () => (double[N, 4] p) { p = Add (a, z) },
        else_branch = e () => (double[N, 4] q) { k = Constant <value = double {3.0}> ()  q = Mul (a, k) }
    >
    i = Cast <to = 7> (r)  y = Cast <to = 11> (i)
"""


def test_no_dtype_is_left_and_the_graph_stays_valid(tmp_path):
    own = model(f"g (double[N, 4] x) => (double[N, 4] y) {{ {BODY} }}", w=np.eye(4), shape=np.array([4]))
    before = own.proto.SerializeToString(deterministic=True)
    made = OnnxModel(retyped(own.proto, {TensorProto.DOUBLE: TensorProto.FLOAT}, None))
    assert own.proto.SerializeToString(deterministic=True) == before
    assert TensorProto.DOUBLE not in dtypes(made.proto).values()
    assert TensorProto.DOUBLE in dtypes(own.proto).values()
    checked(made)
    for x in (np.ones((2, 4)), -np.ones((2, 4))):
        (got,) = answers(made, tmp_path, x=x.astype(np.float32))
        np.testing.assert_array_equal(got, answers(own, tmp_path, x=x)[0])
        assert got.dtype == np.float32
