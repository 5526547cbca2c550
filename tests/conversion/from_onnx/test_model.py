"""A model in ONNX, read and written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion.from_onnx.model import GraphTensor, external_files, read, write


@pytest.fixture
def linear() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "linear", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_each_source_is_read(linear, tmp_path):
    onnx.save(linear, tmp_path / "linear.onnx")
    for source in (linear, linear.SerializeToString(), tmp_path / "linear.onnx", str(tmp_path / "linear.onnx")):
        model = read(source)
        assert model.inputs == (GraphTensor("x", "float32", ("batch", 4)),)
        assert model.outputs == (GraphTensor("y", "float32", ("batch", 3)),)


def test_weights_in_a_file_of_their_own_go_along(linear, tmp_path):
    onnx.save(linear, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    model = read(tmp_path / "a.onnx")
    assert external_files(model) == {"a.bin"}
    (tmp_path / "elsewhere").mkdir()
    written = onnx.load(str(write(model, tmp_path / "elsewhere")))
    np.testing.assert_array_equal(numpy_helper.to_array(written.graph.initializer[0]), np.ones((4, 3)))
