# ruff: noqa: E402
"""A version's graph is run by ONNX Runtime, and what it refuses is an error of the inputs or of the manifest."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.engine.reference_onnx import OnnxProgram
from mlflow_trt.errors import InputError, ManifestError, SettingError
from mlflow_trt.plan.manifest import Branch, Interface, Tensor, TensorLeaf


def interface(**changes):
    x = Tensor(name="x", binding="x", dtype="float32", binding_dtype="float32", shape=("n", 3))
    y = Tensor(name="answer", binding="y", dtype="float32", binding_dtype="float32", shape=("n", 3))
    nothing = Branch(kind="tuple", items=())
    made = Interface(inputs=(x,), outputs=(y,), arguments=nothing, result=TensorLeaf(name="answer"))
    return made.model_copy(update=changes)


def graph(folder, kind=TensorProto.FLOAT):
    weight = numpy_helper.from_array(np.arange(3, dtype=helper.tensor_dtype_to_np_dtype(kind)), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, kind, [None, 3])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_answers_by_public_names_in_public_dtypes(tmp_path, kind):
    program = OnnxProgram(graph(tmp_path, kind), interface())
    answered = program.run([np.ones((2, 3), np.dtype(">f4"))])
    assert answered["answer"].tolist() == [[1, 2, 3]] * 2
    assert answered["answer"].dtype == np.float32


def test_what_it_refuses_names_the_shapes(tmp_path):
    with pytest.raises(InputError, match=r"x \[2, 4\]"):
        OnnxProgram(graph(tmp_path), interface()).run([np.ones((2, 4), np.float32)])


def test_a_graph_that_is_none_or_another_is_refused(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(ManifestError, match="can't load the graph"):
        OnnxProgram(tmp_path / "no.onnx", interface())
    other = interface().outputs[0].model_copy(update={"binding": "z"})
    with pytest.raises(ManifestError, match="other inputs or outputs"):
        OnnxProgram(graph(tmp_path), interface(outputs=(other,)))


def test_without_onnx_runtime_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SettingError, match="pip install onnxruntime"):
        OnnxProgram(graph(tmp_path), interface())
