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


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Where the one thing that a test remembers is kept."""
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path))
    last_served.remember("models:/m@champion", version="models:/m/3")
    (found,) = tmp_path.rglob("*.json")
    return found


def test_what_is_remembered_twice_is_the_later_one(file):
    last_served.remember("models:/m@champion", version="models:/m/4")
    assert last_served.recall("models:/m@champion")["version"] == "models:/m/4"


def test_what_is_known_already_is_not_written_again(file):
    before = file.stat()
    last_served.remember("models:/m@champion", version="models:/m/3")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"uri": "models:/other@champion", "version": "9"}']
)
def test_a_file_that_is_damaged_or_another_s_tells_nothing(file, content):
    file.write_bytes(content)
    assert last_served.recall("models:/m@champion") == {}
    last_served.remember("models:/m@champion", version="models:/m/3")
    assert last_served.recall("models:/m@champion")["version"] == "models:/m/3"


def test_a_cache_that_can_t_be_written_is_no_reason_to_fail(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "file"))
    last_served.remember("models:/m@champion", version="models:/m/3")
    assert [record.event for record in caplog.records] == ["not_remembered"]
    assert last_served.recall("models:/m@champion") == {}


def test_a_password_in_a_store_s_uri_is_not_written(monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path))
    mlflow.set_tracking_uri("http://user:hunter2@127.0.0.1:9")
    last_served.remember("models:/m@champion", version="models:/m/3")
    (file,) = tmp_path.rglob("*.json")
    assert "hunter2" not in str(file) + file.read_text()


def test_the_cause_of_a_cause_is_an_answer_too():
    error, between = StoreError("It can't be read."), RuntimeError("a layer")
    error.__cause__, between.__cause__ = between, MlflowException("gone", error_code=RESOURCE_DOES_NOT_EXIST)
    assert last_served.answered(error)


@pytest.mark.parametrize(("status", "expected"), [(403, True), (404, True), (500, False), (503, False)])
def test_a_store_s_status_is_an_answer_if_it_is_about_the_request(status, expected):
    import requests

    response = requests.Response()
    response.status_code = status
    error = StoreError("It can't be read.")
    error.__cause__ = requests.HTTPError(response=response)
    assert last_served.answered(error) is expected
