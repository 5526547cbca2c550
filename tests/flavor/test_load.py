"""Reading a logged model: what MLflow hands over, and which backend answers."""

from __future__ import annotations

import json
import logging

import mlflow
import numpy as np
import pandas as pd
import pytest
from interfaces import interface, tensor

import mlflow_trt
from mlflow_trt.flavor import load

from .answers import X, assert_answers, torch_answer


def test_pyfunc_takes_arrays_frames_and_its_raw_model_is_the_engine(classifier_folder):
    loaded = mlflow.pyfunc.load_model(str(classifier_folder), model_config={"backend": "reference"})

    assert_answers(loaded.predict({"x": X}))
    import pandas as pd

    assert_answers(loaded.predict(pd.DataFrame({"x": list(X)})))
    engine = loaded.get_raw_model()
    assert engine.backend == "reference"
    np.testing.assert_allclose(engine(X)["scores"], torch_answer()["scores"], rtol=1e-5, atol=1e-6)


def test_results_say_which_backend_answered(classifier_folder):
    loaded = mlflow.pyfunc.load_model(str(classifier_folder), model_config={"backend": "reference"})

    assert loaded.predict({"x": X}).backend == "reference"


FACE = interface([tensor("image", ("batch", 2), "uint8"), tensor("scale", ("batch",))], [tensor("y", ("batch",))])
IMAGE, SCALE = np.array([[1, 2], [3, 4]], np.uint8), np.array([0.5, 2.0], np.float32)


def test_arrays_of_the_inputs_dtypes_are_handed_on_as_they_are():
    given = {"image": IMAGE, "scale": SCALE}
    taken = load.as_inputs(given, FACE)
    assert taken["image"] is IMAGE
    assert taken["scale"] is SCALE
    assert load.as_inputs(IMAGE, FACE) is IMAGE, "one array has no name to look it up by"


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.float64])
def test_another_dtype_becomes_numbers_that_an_engine_looks_at_one_by_one(dtype):
    """A table knows no uint8 or float16, and Spark gives what it knows."""
    taken = load.as_inputs({"image": IMAGE.astype(dtype), "scale": SCALE.astype(np.float64)}, FACE)
    assert isinstance(taken["image"], list)
    assert isinstance(taken["scale"], list)
    assert np.array_equal(np.asarray(taken["image"]), IMAGE)


def test_what_is_no_array_or_no_input_is_left_to_the_engine_to_refuse():
    number = np.array(3.0)  # of no dimension, and so no list
    given = {"image": [[1, 2]], "scale": number, "unknown": SCALE.astype(np.float64)}
    assert load.as_inputs(given, FACE) == given
    assert isinstance(load.as_inputs(given, FACE)["unknown"], np.ndarray)


def test_a_table_has_a_column_for_each_input():
    frame = pd.DataFrame({"image": list(IMAGE), "scale": SCALE})
    taken = load.as_inputs(frame, FACE)
    assert taken["image"].dtype == np.uint8
    assert np.array_equal(taken["image"], IMAGE)
    assert np.array_equal(taken["scale"], SCALE)
    wide = load.as_inputs(pd.DataFrame({"image": [[1, 2], [3, 4]], "scale": [0.5, 2.0]}), FACE)
    assert np.array_equal(np.asarray(wide["image"]), IMAGE)


def test_a_list_is_one_array():
    assert np.array_equal(load.as_inputs([[1.0, 2.0]], FACE), [[1.0, 2.0]])


def test_a_backend_that_the_environment_chose_is_said_aloud(classifier_folder, monkeypatch, caplog):
    """Nobody who reads the code sees it."""
    for asked, told in (({"backend": "reference"}, True), ({}, False)):
        caplog.clear()
        monkeypatch.setenv(load.CONFIG_VARIABLE, json.dumps(asked))
        with caplog.at_level(logging.WARNING):
            load._load_pyfunc(str(classifier_folder), {"backend": "reference"})
        assert (load.CONFIG_VARIABLE in caplog.text) == told


def test_the_reference_backend_asks_for_no_plan_and_no_gpu(classifier_folder):
    for plan in (classifier_folder / "plans").rglob("*.plan"):
        plan.unlink()
    with mlflow_trt.load_model(classifier_folder, backend="reference") as engine:
        assert_answers(engine.predict({"x": X}))
