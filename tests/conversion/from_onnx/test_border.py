"""Inputs and outputs in the dtypes that callers see."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlflow_trt.conversion.from_onnx.border import bordered, public_dtype

from .written import answers, checked, model, operators, rows


@pytest.mark.parametrize(
    ("dtype", "public"),
    [("DOUBLE", "FLOAT"), ("BFLOAT16", "FLOAT"), ("FLOAT16", "FLOAT16"), ("INT64", "INT64"), ("UINT8", "UINT8")],
)
def test_what_callers_see(dtype, public):
    assert public_dtype(TensorProto.DataType.Value(dtype)) == TensorProto.DataType.Value(public)


def test_casts_where_they_are_needed(tmp_path):
    own = model("g (float16[N, 4] x, int64[N] i) => (float16[N, 4] y, int64[N] j) "
                "{ y = Add (x, w)  j = Identity (i) }", w=rows(4).astype(np.float16))  # fmt: skip
    bordered(
        own.proto, {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT, "i": TensorProto.INT64, "j": TensorProto.INT64}
    )
    checked(own)
    assert operators(own) == ["Cast", "Add", "Identity", "Cast"]
    y, _ = answers(own, tmp_path, x=rows(2, 4), i=np.array([1, 2]))
    assert y.dtype == np.float32


def test_weights_are_no_inputs():
    own = model("g (float[N, 4] x) => (float[N, 4] y) { y = Add (x, w) }", w=rows(4))
    own.proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    own.proto.ir_version = 3
    bordered(own.proto, dict.fromkeys("xyw", int(TensorProto.FLOAT)))
    assert [value.name for value in own.proto.graph.input] == ["x"]
    checked(own)
