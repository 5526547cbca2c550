"""What was served last: what is kept of it, for whom, and when it may be served again."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from mlflow_trt.errors import PlanError, StoreError
from mlflow_trt.serving.versions import last_served


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (MlflowException("no such alias", error_code=RESOURCE_DOES_NOT_EXIST), True),
        (MlflowException("API request failed with exception"), False),
        (FileNotFoundError("there is no file"), True),
        (ConnectionError("refused"), False),
        (TimeoutError(), False),
        (None, False),
    ],
)
def test_what_counts_as_an_answer(cause, expected):
    error = StoreError("It can't be read.")
    error.__cause__ = cause
    assert last_served.answered(error) is expected


def test_what_is_remembered_is_of_one_registry(monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path))
    last_served.remember("models:/m@champion", version="models:/m/3")
    assert last_served.recall("models:/m@champion")["version"] == "models:/m/3"
    assert last_served.recall("models:/m@other") == {}
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/another.db")
    assert last_served.recall("models:/m@champion") == {}


def test_a_cache_that_was_altered_is_not_served(monkeypatch, tmp_path):
    from mlflow_trt import store

    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path))
    folder = tmp_path / "models" / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(PlanError, match="was altered"):
        store.open_cached("models:/m/3", "0" * 64)
    with pytest.raises(StoreError, match="can't be read"):
        store.open_cached("models:/m/3", "1" * 64)
