"""One call through MLflow: ``models predict``, ``mlflow.models``, ``mlflow.pyfunc``; and who chooses the backend."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.utils import load_serving_example

import mlflow_trt
from mlflow_trt.flavor.load import CONFIG_VARIABLE
from mlflow_trt.plan import host
from mlflow_trt.plan.manifest import Host

from . import mixed
from .mixed import mixed_folder as mixed_folder

GIVEN = mixed.inputs()


@pytest.fixture
def configured(monkeypatch):
    for name, value in mixed.ENV.items():
        monkeypatch.setenv(name, value)


def load(mixed_folder):
    return mlflow.pyfunc.load_model(str(mixed_folder), model_config={"backend": mixed.BACKEND})


def test_the_command_predicts_a_file(mixed_folder, tmp_path, configured):
    (tmp_path / "in.json").write_text(json.dumps({"inputs": mixed.lists(GIVEN)}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", mixed_folder, "--env-manager", "local"]

    subprocess.run([*command, "-i", "in.json", "-o", "out.json"], check=True, timeout=120)

    mixed.assert_answers(json.loads((tmp_path / "out.json").read_text())["predictions"], GIVEN)


def test_models_predict(mixed_folder, tmp_path, configured):
    mlflow.models.predict(str(mixed_folder), GIVEN, env_manager="local", output_path=str(tmp_path / "out.json"))

    mixed.assert_answers(json.loads((tmp_path / "out.json").read_text())["predictions"], GIVEN)


@pytest.mark.filterwarnings("ignore:.*validate_serving_input:FutureWarning")
def test_a_logged_example_validates_the_version(mixed_folder, configured, capsys):
    info = mlflow_trt.log_model(mixed_folder, "mixed", input_example=GIVEN)

    # MLflow has asked the model its example already, and would have warned.
    assert "Failed to validate serving input" not in capsys.readouterr().err
    answer = mlflow.models.validate_serving_input(info.model_uri, load_serving_example(info.model_uri))
    mixed.assert_answers(answer, GIVEN)


@pytest.mark.filterwarnings("ignore:.*validate_serving_input:FutureWarning")
def test_validation_refuses_what_a_server_would(mixed_folder, configured):
    too_many = mlflow.models.convert_input_example_to_serving_input(mixed.inputs(9))

    with pytest.raises(mlflow_trt.InputError, match="above the maximum") as caught:
        mlflow.models.validate_serving_input(str(mixed_folder), too_many)

    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    "columns",
    [mixed.columns(GIVEN), mixed.columns(mixed.flat(GIVEN)), mixed.lists(mixed.flat(GIVEN))],
    ids=["arrays", "flat arrays", "flat lists"],
)
def test_frames_of_rows(mixed_folder, columns):
    mixed.assert_answers(load(mixed_folder).predict(pd.DataFrame(columns)), GIVEN)


def test_columns_of_types_that_lose_nothing(mixed_folder):
    """As a table without uint8 or float32 has them."""
    wide = {"ids": np.int32, "mask": bool, "image": np.int16, "weight": np.float64}
    columns = {name: list(tensor.astype(wide[name])) for name, tensor in mixed.flat(GIVEN).items()}

    mixed.assert_answers(load(mixed_folder).predict(pd.DataFrame(columns)), GIVEN)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("image", lambda x: x.astype(np.int16) + 256, "which uint8 can hold"),
        ("image", lambda x: x.astype(np.float32), "'image' is a list of float32"),
        ("ids", lambda x: x.astype(np.float64), "'ids' is a list of float64"),
        ("mask", lambda x: x.astype(np.int64), "'mask' is a list of int64"),
    ],
)
def test_columns_that_would_lose_something_are_refused(mixed_folder, name, change, message):
    changed = {**GIVEN, name: change(GIVEN[name])}

    with pytest.raises(mlflow_trt.InputError, match=message):
        load(mixed_folder).predict(pd.DataFrame(mixed.columns(mixed.flat(changed))))


def test_params_that_no_signature_declares_change_nothing(mixed_folder):
    mixed.assert_answers(load(mixed_folder).predict(GIVEN, params={"temperature": 2}), GIVEN)


def test_lists_are_for_engines_and_for_models_without_a_signature(mixed_folder):
    loaded = load(mixed_folder)

    with pytest.raises(MlflowException, match="numpy array") as caught:
        loaded.predict(mixed.lists(GIVEN))

    assert caught.value.get_http_status_code() == 400
    mixed.assert_answers(loaded.get_raw_model().predict(mixed.lists(GIVEN)), GIVEN)
    loaded.metadata.signature = None
    mixed.assert_answers(loaded.predict(mixed.lists(GIVEN)), GIVEN)


# ---- who chooses the backend ---------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(host, "probe", lambda device=0: Host(os="linux"))


def asks_for(monkeypatch, **config):
    monkeypatch.setenv(CONFIG_VARIABLE, json.dumps(config))


def test_the_operators_variable_chooses_and_the_log_tells(mixed_folder, no_gpu, monkeypatch, caplog):
    asks_for(monkeypatch, backend="reference")

    with caplog.at_level(logging.WARNING):
        answer = mlflow.pyfunc.load_model(str(mixed_folder)).predict(GIVEN)

    assert answer.backend == "reference"
    assert mixed.LOG_LINE in caplog.text


def test_code_that_names_a_backend_is_obeyed(mixed_folder, no_gpu, monkeypatch, caplog):
    asks_for(monkeypatch, backend="reference")
    with pytest.raises(mlflow_trt.CompatibilityError):
        mlflow.pyfunc.load_model(str(mixed_folder), model_config={"backend": "tensorrt"})

    asks_for(monkeypatch, max_contexts=1)
    loaded = mlflow.pyfunc.load_model(str(mixed_folder), model_config={"backend": "reference"})

    assert loaded.predict(GIVEN).backend == "reference"
    assert mixed.LOG_LINE not in caplog.text


def test_nobody_asked_so_nothing_stands_in(mixed_folder, no_gpu):
    with pytest.raises(mlflow_trt.CompatibilityError, match='backend="reference"'):
        mlflow.pyfunc.load_model(str(mixed_folder))


def test_a_variable_that_names_no_backend_is_refused(mixed_folder, monkeypatch):
    asks_for(monkeypatch, backend="cpu")

    with pytest.raises(mlflow_trt.SettingError, match="'cpu' is not known"):
        mlflow.pyfunc.load_model(str(mixed_folder))
