"""Answers of PyTorch that no engine can be judged by."""

from __future__ import annotations

import re

import numpy as np
import pytest
from interfaces import interface, tensor
from manifests import manifest, record

from mlflow_trt.errors import ParityError
from mlflow_trt.evidence import recorded
from mlflow_trt.evidence.measure import measure_parity
from mlflow_trt.plan.degenerate import reasons
from mlflow_trt.plan.files import GoldenTensors
from mlflow_trt.plan.manifest import ParityRecord, Precision
from mlflow_trt.plan.parity import compare, default_tolerance

X = np.arange(8, dtype=np.float32).reshape(4, 2)
USUAL = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0], [2.0, 2.0]], np.float32)


def golden(y, x=X):
    return GoldenTensors({"0.opt/x": x}, {"0.opt/y": np.asarray(y)})


@pytest.mark.parametrize(
    ("answer", "precision", "words"),
    [
        (np.zeros((4, 2), np.float32), None, "y is zero throughout"),
        (np.where(USUAL == 3, np.nan, USUAL), "fp32", "1 of 8 entries that are NaN"),
        (np.where(USUAL == 3, np.inf, USUAL), "fp32", "1 of 8 entries that are infinite"),
        (USUAL * 1e-14, "fp16", "at most 4e-14 .* nothing below 6e-08"),
        (USUAL * 1e-6, "fp16", "at most 4e-06 .* loses digits below 6.1e-05"),
        (USUAL * 1e5, "fp16", "reaches 4e.05, and float16 ends at 65504"),
        (np.tile(USUAL[:1], (4, 1)), None, "the same for every row"),
    ],
)
def test_what_is_said(answer, precision, words):
    (reason,) = reasons(golden(answer.astype(np.float32)), precision)
    assert reason.startswith("The model's own answer y")
    assert re.search(words, reason), reason


@pytest.mark.parametrize(
    ("answer", "precision", "x"),
    [
        (USUAL, "fp16", X),
        (USUAL * 1e-14, "bf16", X),
        (USUAL * 1e5, None, X),
        (np.zeros((4,), np.int64), "fp16", X),  # a classifier that answers one class
        (np.zeros((4, 2), bool), None, X),
        (np.tile(USUAL[:1], (4, 1)), None, np.ones_like(X)),  # the inputs' rows are equal too
        (np.float32(3.0), None, X),
        (USUAL[:0], None, X[:0]),
    ],
)
def test_answers_that_are_fit(answer, precision, x):
    assert reasons(golden(answer, x), precision) == []


def test_one_point_with_other_rows_is_enough():
    tensors = GoldenTensors({"0.opt/x": X, "0.max/x": X}, {"0.opt/y": np.tile(USUAL[:1], (4, 1)), "0.max/y": USUAL})
    assert reasons(tensors, None) == []


def test_nan_of_pytorch_is_compared_by_its_place():
    torchs = np.array([1.0, np.nan, 2.0], np.float32)
    allowed = default_tolerance(None)
    assert compare({"y": torchs}, {"y": torchs.copy()}, allowed)[0].passed
    assert not compare({"y": torchs}, {"y": torchs[::-1].copy() * 0}, allowed)[0].passed


def test_a_parity_error_begins_with_the_explanation():
    tensors = golden(USUAL * np.float32(1e-14))
    described = manifest(
        record(precision=Precision(requested="fp16")),
        interface=interface([tensor("x", ("batch", 2))], [tensor("y", ("batch", 2))]),
    )
    figures = compare({"y": tensors.outputs["0.opt/y"]}, {"y": np.zeros((4, 2), np.float32)}, default_tolerance("fp16"))
    failed = ParityRecord.model_validate(
        {"status": "failed", "points": [{"profile": 0, "point": "opt", "outputs": figures}]}
    )
    found = recorded.explanations(None, described, tensors)
    with pytest.raises(ParityError) as caught:
        recorded.refuse_failed(failed, described.plans[0], found)
    assert caught.value.found.startswith("The model's own answer y is at most 4e-14 in magnitude")
    assert caught.value.remedy.startswith("give golden_inputs=")


def test_the_point_between_is_read_and_shown():
    """Between stands where its size does; folders without it read as ever."""

    class Echo:
        interface = interface([tensor("x", ("batch", 2))], [tensor("y", ("batch", 2))])
        profiles = ()

        def predict(self, inputs):
            return {"y": inputs["x"]}

    names = ("max", "between", "opt", "min", "user0")
    tensors = GoldenTensors({f"0.{n}/x": X for n in names}, {f"0.{n}/y": X for n in names})
    parity = measure_parity(Echo(), tensors, default_tolerance(None))
    assert [point.point for point in parity.points] == ["min", "between", "opt", "max", "user0"]
    assert recorded.parity_metrics(parity)["trt.parity.rel_l2"] == 0.0
