"""Values of weights in another dtype."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion.from_onnx import weights


@pytest.mark.parametrize(("dtype", "most"), [(TensorProto.FLOAT16, 65504), (TensorProto.BFLOAT16, 3.3895314e38)])
def test_finite_numbers_stay_finite(dtype, most):
    values = np.array([1, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan], np.float32)
    made = weights.in_dtype(numpy_helper.from_array(values, "w"), dtype, None)
    assert (made.name, made.data_type, made.dims) == ("w", dtype, [6])
    got = weights.array(made, None).astype(np.float64)
    np.testing.assert_allclose(got, [1, most, -most, np.inf, -np.inf, np.nan], rtol=1e-6)


def test_float64_becomes_float32():
    made = weights.in_dtype(numpy_helper.from_array(np.array([0.1, 1e300])), TensorProto.FLOAT, None, "other")
    assert made.name == "other"
    np.testing.assert_array_equal(weights.array(made, None), [np.float32(0.1), np.finfo(np.float32).max])


def test_each_field_that_onnx_has_for_values():
    for dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        typed = helper.make_tensor("w", dtype, [2], [1.5, -2.0])
        np.testing.assert_array_equal(weights.array(weights.in_dtype(typed, TensorProto.FLOAT, None), None), [1.5, -2])


def test_bytes_in_a_file_are_not_read_into_the_model(tmp_path):
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    graph = helper.make_graph([], "g", [], [], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    (tensor,) = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False).graph.initializer
    before = tensor.SerializeToString()
    made = weights.in_dtype(tensor, TensorProto.FLOAT16, tmp_path)
    assert tensor.SerializeToString() == before
    np.testing.assert_array_equal(weights.array(made, None), np.arange(6).reshape(2, 3))
