# ruff: noqa: E402
"""What a graph answers by ONNX Runtime, half precision in float32 from the graph's own rounded weights."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion import onnx_runtime

THIRD = np.array([1 / 3], np.float16)


def saved(folder, operator="Mul", kind=TensorProto.FLOAT16, outside=False):
    weight = numpy_helper.from_array(THIRD.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    nodes = [helper.make_node(operator, ["x", "w"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, kind, [1])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, folder / "m.onnx", save_as_external_data=outside, location="w.bin", size_threshold=0)
    return folder / "m.onnx"


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_computed_in_float32_from_its_rounded_weights(tmp_path, kind, outside):
    session = onnx_runtime.widened_session(saved(tmp_path, kind=kind, outside=outside))
    x = np.array([3], helper.tensor_dtype_to_np_dtype(kind))
    if kind == TensorProto.BFLOAT16:
        x = x.view(np.uint16)
        pytest.skip("numpy hands no bfloat16 to ONNX Runtime")
    (y,) = session.run(None, {"x": x})
    assert y.dtype == np.float32
    assert y[0] == np.float32(THIRD[0]) * 3


def test_as_it_is(tmp_path):
    (y,) = onnx_runtime.session(saved(tmp_path)).run(None, {"x": np.array([3], np.float16)})
    assert y.dtype == np.float16


def test_an_operator_that_is_missing_is_told_from_a_fault(tmp_path):
    with pytest.raises(onnx_runtime.NotThereError, match="NotImplemented"):
        onnx_runtime.session(saved(tmp_path, kind=TensorProto.BFLOAT16))
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match=r"(?i)protobuf") as fault:
        onnx_runtime.session(tmp_path / "m.onnx")
    assert not isinstance(fault.value, onnx_runtime.NotThereError)
    assert "\n" not in onnx_runtime.words(fault.value)


def test_bfloat16_in_an_opset_whose_casts_have_it_not(tmp_path):
    """TensorRT's parser takes it there."""
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [1 / 3])
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["b", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, [weight])
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6).SerializeToString()
    )
    (y,) = onnx_runtime.widened_session(path).run(None, {"x": np.array([3], np.float32)})
    assert 0 < abs(y[0] - 1) < 1e-2, "of the rounded weight"
