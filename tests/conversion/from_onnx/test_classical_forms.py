"""Each of scikit-learn's operators against what ONNX Runtime has for it."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_trt.conversion.from_onnx.classical import rewritten
from mlflow_trt.conversion.from_onnx.classical_forms import FORMS
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.errors import UnsupportedOperatorError

from .made import FLOAT, INT64, answers, model, node, rows, value

X = np.concatenate([rows(20, 4), np.zeros((2, 4), np.float32), -np.ones((1, 4), np.float32), 3 * rows(9, 4, seed=1)])
HOLES = np.where(np.abs(X) > 1.5, np.nan, X).astype(np.float32)
WHOLE = np.round(2 * X).astype(np.int64)
WEIGHTS = rows(3, 4, seed=2).ravel().tolist()
NAN = float("nan")
ONE_EACH = [1.0, 2.0, 3.0, 4.0]
CASES = {
    "Scaler": (X, {"offset": ONE_EACH, "scale": [0.5, 2.0, 1.0, 0.1]}),
    "Scaler of integers": (WHOLE, {"offset": [1.0], "scale": [0.3]}),
    "Normalizer MAX": (X, {"norm": "MAX"}),
    "Normalizer L1": (X, {"norm": "L1"}),
    "Normalizer L2": (X, {"norm": "L2"}),
    "Normalizer": (X, {}),
    "Binarizer": (X, {"threshold": 0.25}),
    "Imputer of what is no number": (
        HOLES,
        {"imputed_value_floats": ONE_EACH, "replaced_value_float": NAN},
    ),
    "Imputer of zeros": (X, {"imputed_value_floats": [7.0], "replaced_value_float": 0.0}),
    "LinearRegressor": (X, {"coefficients": WEIGHTS[:4]}),
    "LinearRegressor of three": (X, {"coefficients": WEIGHTS, "intercepts": [1.0, 2.0, 3.0], "targets": 3}),
    "OneHotEncoder": (WHOLE, {"cats_int64s": [-1, 0, 1, 2], "zeros": 1}),
    "OneHotEncoder of floats": (np.round(X), {"cats_int64s": [-1, 0, 1], "zeros": 1}),
    "LabelEncoder": (WHOLE, {"keys_int64s": [-1, 0, 5], "values_floats": [0.5, 1.5, 2.5], "default_float": -9.0}),
    "LabelEncoder to integers": (WHOLE, {"keys_int64s": [0, 1], "values_int64s": [1 << 40, 7], "default_int64": 3}),
    "LabelEncoder without a default": (WHOLE, {"keys_int64s": [0, 1], "values_int64s": [4, 7]}),
    "LabelEncoder of floats": (np.round(X), {"keys_floats": [0.0, 1.0], "values_floats": [4.0, 7.0]}),
}


def check(proto, x, names=("y",)):
    made = rewritten(proto)
    assert {each.domain for each in made.graph.node} == {""}
    read(made)
    wanted, got = answers(proto, x=x), answers(made, x=x)
    for name in names:
        assert (got[name].dtype, got[name].shape) == (wanted[name].dtype, wanted[name].shape)
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, atol=1e-6)
    return made


def made(operator, x, own, ml=1):
    fed = value("x", (None, 4), INT64 if x.dtype == np.int64 else FLOAT)
    answer = value("y", None, INT64 if "values_int64s" in own else FLOAT)
    return model([node(operator, ["x"], ["y"], domain="ai.onnx.ml", **own)], [fed], [answer], ai_onnx_ml=ml)


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_it_answers_as_before(name, case):
    x, own = case
    check(made(name.split()[0], x, own, ml=2 if name.startswith("LabelEncoder") else 1), x)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_classifier_answers_as_before(transform, classes):
    own = {"coefficients": WEIGHTS[: 4 * classes], "intercepts": [0.5, 0.0, -1.0][:classes]}
    own |= {"post_transform": transform, "classlabels_ints": [4, 1, 7][:classes]}
    classifier = node("LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", **own)
    outputs = [value("label", (None,), INT64), value("y", (None, classes))]
    check(model([classifier], outputs=outputs, ai_onnx_ml=1), X, ("label", "y"))


def test_a_label_that_nothing_reads():
    own = {"coefficients": WEIGHTS, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2], "domain": "ai.onnx.ml"}
    check(model([node("LinearClassifier", ["x"], ["label", "y"], **own)], ai_onnx_ml=1), X)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_columns_are_taken_of_any_rank(shape):
    x = rows(*shape)
    proto = model(
        [node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")],
        [value("x", shape)],
        [value("y", None)],
        {"i": np.array([[3, 1, 1]])},
        ai_onnx_ml=1,
    )
    check(proto, x)


UNKNOWN = {
    "Imputer": {"imputed_value_int64s": [1], "replaced_value_int64": 0},
    "LabelEncoder": {"keys_int64s": [1], "values_strings": ["a"]},
    "OneHotEncoder": {"cats_strings": ["a"]},
    "LinearRegressor": {"coefficients": WEIGHTS[:4], "post_transform": "PROBIT"},
    "LinearClassifier": {"coefficients": WEIGHTS[:4], "intercepts": [0.0], "classlabels_ints": [0, 1]},
}


@pytest.mark.parametrize(("operator", "own"), UNKNOWN.items(), ids=UNKNOWN)
def test_a_form_that_is_not_known_is_refused(operator, own):
    """ONNX Runtime has its own mind about scores of one class, of which two are made."""
    with pytest.raises(UnsupportedOperatorError, match=f"{operator} at y: .*"):
        rewritten(made(operator, X, own))


@pytest.mark.parametrize("operator", ["OneHotEncoder", "LabelEncoder"])
def test_comparisons_that_an_old_opset_has_not_are_refused(operator):
    proto = made(operator, *CASES[operator])
    proto.opset_import[0].version = 10
    with pytest.raises(UnsupportedOperatorError, match="opset 11 and newer"):
        rewritten(proto)


def test_every_form_is_tested_somewhere():
    tested = {name.split()[0] for name in CASES} | {"LinearClassifier", "ArrayFeatureExtractor", "ZipMap"}
    assert tested == set(FORMS)
