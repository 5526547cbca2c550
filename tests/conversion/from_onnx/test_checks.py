"""What can't become an engine is refused with words of its own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion.from_onnx import checks
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.errors import ConversionError, UnsupportedOperatorError

from .made import BOOL, FLOAT, INT64, STRING, built, linear, model, node, value

IDENTITY = [node("Identity", ["x"], ["y"])]


def of(dtype):
    return model(IDENTITY, [value("x", dtype=dtype)], [value("y", dtype=dtype)])


def versioned(**fields):
    proto = linear()
    proto.ir_version = fields.get("ir", 10)
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*pair) for pair in fields.get("opsets", [("", 20)]))
    return proto


SEQUENCE = helper.make_tensor_sequence_value_info("x", FLOAT, None)
OPTIONAL = helper.make_value_info("x", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2])))
MAP = helper.make_value_info("x", helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, [])))

REFUSED = {
    "a newer IR": (versioned(ir=99), "IR version 99, which onnx .* does not know"),
    "a newer opset": (versioned(opsets=[("", 99)]), "opset 99, which onnx"),
    "a newer opset of scikit-learn's": (versioned(opsets=[("", 20), ("ai.onnx.ml", 99)]), "opset 99 of ai.onnx.ml"),
    "an older opset": (versioned(opsets=[("", 6)]), "is of opset 6"),
    "from before opsets": (versioned(ir=2, opsets=[]), "is of opset 1"),
    "no opset": (versioned(opsets=[]), "not valid ONNX.*opset_import"),
    "no inputs": (model([node("Identity", ["w"], ["y"])], [], weights={"w": np.ones(2)}), "has no inputs"),
    "no outputs": (model(IDENTITY, outputs=[]), "has no outputs"),
    "one output twice": (model(IDENTITY, outputs=["y", "y"]), "two outputs of one name: y"),
    "one input twice": (model(IDENTITY, ["x", "x"]), "not valid ONNX.*graph input names multiple times"),
    "one value twice": (model(IDENTITY * 2), "not valid ONNX.*output names multiple times"),
    "a value that is not there": (model([node("Identity", ["z"], ["y"])]), "not valid ONNX.*'z'"),
    "no rank": (model(IDENTITY, [value("x", None)], [value("y", None)]), "Not even the rank of the input x"),
    "no elements": (model(IDENTITY, [value("x", (0, 4))]), "x has no elements"),
    "strings": (of(STRING), "input x is string"),
    "int16": (of(TensorProto.INT16), "input x is int16"),
    "uint64": (of(TensorProto.UINT64), "input x is uint64"),
    "complex numbers": (of(TensorProto.COMPLEX64), "input x is complex64"),
    "FP8": (of(TensorProto.FLOAT8E4M3FN), "input x is float8"),
    "a sequence": (model(IDENTITY, [SEQUENCE], ["y"]), "input x is a sequence"),
    "an optional": (model(IDENTITY, [OPTIONAL], ["y"]), "input x is an optional"),
    "a map": (model(IDENTITY, [MAP], ["y"]), "input x is a map"),
}


@pytest.mark.parametrize(("proto", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(proto, words):
    with pytest.raises(ConversionError, match=words) as caught:
        read(proto)
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize("dtype", checks.FED)
def test_dtypes_that_are_taken_build(dtype):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    number = {"float32": FLOAT, "float64": TensorProto.DOUBLE}.get(dtype) or getattr(TensorProto, dtype.upper())
    proto = model(IDENTITY, [value("x", (2, 4), number)], [value("y", (2, 4), number)])
    assert built(proto) == [("y", {"float64": "float32"}.get(dtype, dtype), [2, 4])]


def test_an_output_without_a_shape_is_fine():
    assert read(model(IDENTITY, outputs=[value("y", None)])).outputs[0].shape is None


def damaged(change):
    proto = linear()
    change(proto.graph.initializer[0])
    return proto


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: setattr(t, "raw_data", t.raw_data[:-4]), r"w are 44 long, and \[4, 3\] needs 48"),
        (lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0] * 11)), "are 11 long"),
        (lambda t: setattr(t, "data_type", 99), r"dtype that onnx does not know \(99\)"),
        (lambda t: t.dims.insert(0, -1), "impossible shape"),
        (lambda t: t.segment.SetInParent(), "part of a tensor"),
        (lambda t: (setattr(t, "data_type", STRING), setattr(t, "data_location", TensorProto.EXTERNAL)), "are strings"),
    ],
)
def test_weights_that_are_not_whole(change, words):
    with pytest.raises(ConversionError, match=words):
        read(damaged(change))


def test_whole_weights_in_any_field():
    proto = model(IDENTITY)
    for dtype in (FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT4, INT64, BOOL):
        proto.graph.initializer.append(helper.make_tensor(f"w{dtype}", dtype, [3], [1] * 3))
    proto.graph.initializer.append(helper.make_tensor("c", TensorProto.COMPLEX64, [2], [1 + 1j, 2j]))
    checks.check_weights(proto)


def test_sparse_weights_are_refused():
    proto = model(IDENTITY)
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1])), [4])
    )
    with pytest.raises(ConversionError, match="sparse are sparse"):
        read(proto)


def test_operators_that_their_opset_has_not_are_named_where_they_stand():
    inside = helper.make_graph([node("Foo", ["x"], ["a"], name="deep")], "b", [], [value("a")])
    choice = node("If", ["c"], ["y"], then_branch=inside, else_branch=inside)
    nodes = [node("Celu", ["x"], ["z"]), node("Gelu", ["z"], ["w"]), choice]
    proto = model(nodes, ["x", value("c", (), BOOL)], opset=19)
    with pytest.raises(UnsupportedOperatorError, match="Gelu at w\n  Foo at deep") as caught:
        read(proto)
    assert caught.value.operators == ("onnx.Gelu", "onnx.Foo")


def test_operators_of_others_are_refused_for_the_parser_takes_them_for_onnxs_own():
    proto = model([node("Relu", ["x"], ["z"], domain="com.mine"), node("Gelu", ["z"], ["y"], domain="com.microsoft")])
    with pytest.raises(UnsupportedOperatorError, match=r"com.mine.Relu at z\n  com.microsoft.Gelu at y") as caught:
        checks.check_operators(proto)
    assert caught.value.operators == ("onnx.com.mine.Relu", "onnx.com.microsoft.Gelu")
    assert "before ONNX Runtime optimized" in caught.value.remedy


def test_random_answers_are_refused():
    with pytest.raises(UnsupportedOperatorError, match="otherwise each time:\n  RandomNormalLike at y"):
        checks.check_operators(model([node("RandomNormalLike", ["x"], ["y"])]))


def test_selection_of_boxes_is_refused_where_it_can_not_be_built():
    limits = {"most": np.array([4]), "overlap": np.array([0.5], np.float32), "least": np.array([0.1], np.float32)}
    proto = model(
        [node("NonMaxSuppression", ["boxes", "scores", *limits], ["y"])],
        [value("boxes", (1, 8, 4)), value("scores", (1, 3, 8))],
        [value("y", (None, 3), INT64)],
        limits,
    )
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    with pytest.raises(ConversionError, match="no runners"):
        built(proto)
    with pytest.raises(UnsupportedOperatorError, match="NonMaxSuppression at y") as caught:
        checks.check_kernels(proto)
    assert "nms=False" in caught.value.remedy
    checks.check_kernels(linear())


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([], "no outputs but strings"),
        ([SEQUENCE], "x is a sequence"),
        ([value("y", dtype=STRING)], "y is string"),
    ],
)
def test_outputs_that_an_engine_has_not(outputs, words):
    with pytest.raises(ConversionError, match=words):
        checks.check_outputs(model(IDENTITY, outputs=outputs))
