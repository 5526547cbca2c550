"""Scikit-learn's pipelines, as skl2onnx writes them, in standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from mlflow_trt.conversion.from_onnx.classical import rewritten
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.conversion.from_onnx.plain import plain
from mlflow_trt.errors import UnsupportedOperatorError

from .made import FLOAT, INT64, STRING, answers, built, linear, model, node, operators, rows, value

ML = {"domain": "ai.onnx.ml"}


def dictionaries(key):
    """The type of ZipMap's output, as skl2onnx writes it."""
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, None))
    return helper.make_value_info("output_probability", helper.make_sequence_type_proto(kind))


def logistic_regression(opset=9, names=()):
    """StandardScaler and LogisticRegression of three classes; skl2onnx 1.20 writes these nodes, in this opset."""
    labels = {"classlabels_strings": names} if names else {"classlabels_ints": [3, 5, 9]}
    coefficients = rows(3, 4).ravel().tolist()
    classifier = {"coefficients": coefficients, "intercepts": [0.5, 0.0, -0.5], "post_transform": "SOFTMAX"}
    keys = {"classlabels_strings": names} if names else {"classlabels_int64s": [3, 5, 9]}
    nodes = [
        node("Scaler", ["X"], ["variable"], offset=[1.0, 2.0, 3.0, 4.0], scale=[0.5, 2.0, 1.0, 3.0], **ML),
        node("LinearClassifier", ["variable"], ["label", "probability_tensor"], **labels, **classifier, **ML),
        node("Identity", ["label"], ["output_label"]) if names else node("Cast", ["label"], ["output_label"], to=INT64),
        node("Normalizer", ["probability_tensor"], ["probabilities"], norm="L1", **ML),
        node("ZipMap", ["probabilities"], ["output_probability"], **keys, **ML),
    ]
    kind = STRING if names else INT64
    outputs = [value("output_label", (None,), kind), dictionaries(kind)]
    return model(nodes, [value("X", (None, 4))], outputs, opset=opset, ai_onnx_ml=1)


def test_a_pipeline_answers_as_before():
    proto = logistic_regression()
    before = proto.SerializeToString()
    made = plain(read(proto))
    assert proto.SerializeToString() == before
    assert [(o.name, o.dtype) for o in made.outputs] == [("output_label", "int64"), ("output_probability", "float32")]
    onnx.checker.check_model(made.proto, full_check=True)
    x = np.array([1, 2, 3, 4], np.float32) + rows(64, 4, seed=1)
    wanted, got = answers(proto, X=x), answers(made.proto, X=x)
    np.testing.assert_array_equal(got["output_label"], wanted["output_label"])
    assert set(wanted["output_label"]) == {3, 5, 9}
    table = np.array([[each[label] for label in (3, 5, 9)] for each in wanted["output_probability"]])
    np.testing.assert_allclose(got["output_probability"], table, atol=2e-7)


@pytest.mark.parametrize("opset", [9, 20])
def test_it_builds(opset):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    made = plain(read(logistic_regression(opset)))
    outputs = built(made.proto, X=((1, 4), (8, 4), (32, 4)))
    assert outputs == [("output_label", "int64", [-1]), ("output_probability", "float32", [-1, 3])]


def test_names_of_classes_are_left_out_and_told(caplog):
    proto = logistic_regression(names=["setosa", "versicolor", "virginica"])
    made = plain(read(proto))
    assert [o.name for o in made.outputs] == ["output_probability"]
    assert "output_label is left out" in caplog.text
    assert "order of the columns of the probabilities: setosa, versicolor, virginica" in caplog.text
    x = rows(8, 4)
    wanted = [list(each.values()) for each in answers(proto, X=x)["output_probability"]]
    np.testing.assert_allclose(answers(made.proto, X=x)["output_probability"], wanted, atol=2e-7)


def test_labels_of_a_network_are_taken_from_a_constant(caplog):
    """MLPClassifier's last nodes: the class by its number, or by its name."""
    for classes, kind, left in (
        (np.array([3, 5, 9, 11]), INT64, ["y", "label"]),
        (helper.make_tensor("c", STRING, [4], [b"a", b"b", b"c", b"d"]), STRING, ["y"]),
    ):
        nodes = [
            node("Softmax", ["x"], ["y"], axis=1),
            node("ArgMax", ["y"], ["best"], axis=1),
            node("ArrayFeatureExtractor", ["classes", "best"], ["row"], **ML),
            node("Reshape", ["row", "flat"], ["label"]),
        ]
        weights = {"classes": classes, "flat": np.array([-1])}
        proto = model(nodes, outputs=["y", value("label", (None,), kind)], weights=weights, opset=13, ai_onnx_ml=1)
        made = plain(read(proto))
        assert [o.name for o in made.outputs] == left
        wanted, got = answers(proto, x=rows(8, 4)), answers(made.proto, x=rows(8, 4))
        for name in left:
            np.testing.assert_array_equal(got[name], wanted[name])
    assert "order of the columns of the probabilities: a, b, c, d" in caplog.text


@pytest.mark.parametrize("operator", ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "SVMClassifier"])
def test_trees_and_support_vectors_are_left_to_others(operator):
    proto = model([node(operator, ["x"], ["y"], **ML)], ai_onnx_ml=1)
    with pytest.raises(UnsupportedOperatorError, match=f"{operator} at y") as caught:
        rewritten(proto)
    assert caught.value.operators == (f"onnx.ai.onnx.ml.{operator}",)
    assert "ONNX Runtime" in caught.value.remedy


def test_an_opset_without_choices_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="in opset 8") as caught:
        rewritten(logistic_regression(8))
    assert caught.value.operators[0] == "onnx.ai.onnx.ml.Scaler"


def test_others_are_left_alone():
    proto = linear()
    assert rewritten(proto) is proto
    assert operators(proto) == ["MatMul"]
