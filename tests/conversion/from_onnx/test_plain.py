"""The same function in operators that TensorRT's parser takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_trt.conversion.from_onnx.model import loaded, read
from mlflow_trt.conversion.from_onnx.plain import plain
from mlflow_trt.errors import ConversionError, UnsupportedOperatorError

from .made import FLOAT, answers, built, linear, model, node, operators, rows, value


def test_where_nothing_is_to_be_done_it_is_the_same_model(tmp_path):
    onnx.save(linear(4, 1000), tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0)
    made = read(tmp_path / "a.onnx")
    assert plain(made) is made


def test_all_at_once_with_weights_beside(tmp_path):
    """A function, a choice by size, a classifier, and an output that is an input; twice is as good as once."""
    inner = helper.make_graph([node("MatMul", ["x", "w"], ["out"])], "b", [], [value("out")])
    other = helper.make_graph([node("Identity", ["x"], ["out"])], "b", [], [value("out")])
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["d"]),
        node("Equal", ["d", "size"], ["c"]),
        node("If", ["c"], ["z"], then_branch=inner, else_branch=other),
        node("Twice", ["z"], ["t"], domain="mine"),
        node("Scaler", ["t"], ["y"], domain="ai.onnx.ml", offset=[1.0] * 64, scale=[2.0] * 64),
    ]
    weights = {"w": rows(64, 64), "one": np.array(1), "size": np.array(64), "unused": rows(64, 64)}
    wide = ("batch", 64)
    proto = model(nodes, [value("x", wide)], [value("y", wide), value("x", wide)], weights, mine=1, ai_onnx_ml=1)
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], proto.opset_import[:1]
    )
    proto.functions.append(twice)
    copy = onnx.load_from_string(proto.SerializeToString())
    onnx.save(copy, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0)
    made = plain(read(tmp_path / "a.onnx"))
    assert [name for name in operators(made.proto) if name not in ("Identity", "Cast")] == [
        "MatMul",
        "Add",
        "Sub",
        "Mul",
    ]
    assert made.folder == tmp_path
    assert plain(made) is made
    x = rows(3, 64)
    got = answers(loaded(made), x=x)
    np.testing.assert_array_equal(got["y"], answers(proto, x=x)["y"])
    np.testing.assert_array_equal(got["x.out"], x)
    assert "unused" not in {tensor.name for tensor in made.proto.graph.initializer}


def test_weights_that_are_inputs_too_are_never_fed():
    """As every weight is in a graph of IR version 3."""
    weights = {"w": rows(64, 64), "v": rows(64, 64), "axes": np.array([1]), "yes": np.array(True)}
    taken = helper.make_graph([node("MatMul", ["x", "w"], ["a"])], "b", [], [value("a")])
    other = helper.make_graph([node("Reshape", ["v", "axes"], ["a"])], "b", [], [value("a")])
    wide = value("x", ("batch", 64))
    proto = model([node("If", ["yes"], ["y"], then_branch=taken, else_branch=other)], [wide], weights=weights, opset=8)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    made = plain(read(proto))
    assert [i.name for i in made.inputs] == ["x"]
    assert [v.name for v in made.proto.graph.input] == ["x", "w"]
    x = rows(2, 64)
    np.testing.assert_allclose(answers(made.proto, x=x)["y"], x @ weights["w"], rtol=1e-4)


def test_a_network_of_tensorflow_builds():
    """As tf2onnx writes one: NHWC, shapes in int32, names with colons."""
    nodes = [
        node("Transpose", ["serving_default_x:0"], ["nchw"], perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        node("Transpose", ["conv"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Shape", ["nhwc"], ["shape"]),
        node("Cast", ["shape"], ["shape32"], to=TensorProto.INT32),
        node("Slice", ["shape32", "zero", "one", "zero"], ["batch"]),
        node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        node("Cast", ["wanted"], ["wanted64"], to=TensorProto.INT64),
        node("Reshape", ["nhwc", "wanted64"], ["Identity:0"]),
    ]
    weights = {"kernel": rows(5, 3, 3, 3), "zero": np.array([0], np.int32), "one": np.array([1], np.int32)}
    weights["rest"] = np.array([-1], np.int32)
    image = value("serving_default_x:0", ("unk__1", 8, 8, 3))
    made = plain(read(model(nodes, [image], [value("Identity:0", ("unk__2", None))], weights)))
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    ranges = {"serving_default_x:0": tuple((n, 8, 8, 3) for n in (1, 2, 4))}
    ((name, dtype, shape),) = built(made.proto, **ranges)
    assert (name, dtype, shape) == ("Identity:0", "float32", [-1, 320])


def test_what_is_left_over_is_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"com.microsoft.FusedMatMul at y"):
        plain(read(model([node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")], com_microsoft=1)))
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    with pytest.raises(ConversionError, match="output y is a sequence"):
        plain(read(model([node("SequenceConstruct", ["x"], ["y"])], outputs=[sequence])))
