"""A registry that goes away: what was loaded answers without it, and a server may start from its cache if told to."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from mlflow_trt.errors import PlanError, StoreError
from mlflow_trt.serving.readiness import ready
from mlflow_trt.serving.versions import last_served

from .registered import Registry, proxy, registry, rows
from .running import Served, request, served

__all__ = ["registry"]

pytestmark = [pytest.mark.xdist_group("servers"), pytest.mark.slow]

ONE = rows(1)["x"].tolist()
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def options(registry: Registry, tmp_path) -> tuple[str, ...]:
    pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
    registry.point(registry.add(1.0))
    return (f"--model=m={registry.uri}", "--interval", "0.3")


@pytest.mark.parametrize("processes", ["0", "1"])
def test_what_was_loaded_answers(registry, options, processes, tmp_path):
    with proxy(registry.server.uri) as between:
        env = {"MLFLOW_TRACKING_URI": between.uri}
        with served(tmp_path, *options, "--http-processes", processes, env=env) as server:
            assert counted(server)['mlflow_trt_registry_reachable{model="m"}'] == 1
            between.rule = lambda request: "drop"
            asks_nobody(server)
            until(lambda: counted(server)['mlflow_trt_registry_reachable{model="m"}'] == 0)
            checked = counted(server)['mlflow_trt_registry_checked_timestamp_seconds{model="m"}']
            assert 0 < time.time() - checked < 600
            assert all(isinstance(json.loads(line), dict) for line in server.lines())


def test_a_server_may_start_from_its_cache(registry, options, tmp_path):
    with proxy(registry.server.uri) as between:
        env = {"MLFLOW_TRACKING_URI": between.uri}
        with served(tmp_path, *options, env=env):
            pass
        between.rule = lambda request: "drop"
        with pytest.raises(AssertionError, match="can't be read"), served(tmp_path, *options, env=env):
            pass
        with served(tmp_path, *options, "--offline-start", env=env) as server:
            asks_nobody(server)
            assert server.get("/v2/models/m").json()["status"]["cached"] is True
            told = [json.loads(line) for line in server.lines()]
            assert any(line.get("event") == "offline_start" and line["level"] == "warning" for line in told)
            # And once the registry is back, it is followed as ever.
            between.reset()
            registry.point(registry.add(5.0))
            until(lambda: server.get("/v2/models/m").json()["versions"] == ["2"], 60)
            assert server.get("/v2/models/m").json()["status"]["cached"] is False
        # A registry that answers is believed: here that there is no such alias.
        registry.client.delete_registered_model_alias(registry.name, "champion")
        with pytest.raises(AssertionError), served(tmp_path, *options, "--offline-start", env=env):
            pass


def asks_nobody(server: Served) -> None:
    """Every kind of route answers at once; one look at a registry that is away takes seconds."""

    def ask(method: str, path: str, content: Any, status: int) -> float:
        begin = time.monotonic()
        found = server.get(path) if method == "GET" else server.post(path, json.dumps(content), headers=JSON)
        assert found.status_code == status, found.text
        return time.monotonic() - begin

    asks = [
        ("POST", "/invocations", {"inputs": {"x": ONE}}, 200),
        ("GET", "/version", None, 200),
        ("GET", "/nothing", None, 404),
        ("POST", "/v2/models/m/infer", request(ONE), 200),
    ]
    ask(*asks[0])  # imports MLflow's application
    with ThreadPoolExecutor(8) as threads:
        assert max(threads.map(lambda one: ask(*one), asks * 4)) < 3


def counted(server: Served) -> dict[str, float]:
    lines = server.get("/metrics").text.splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


# --- the decisions ---


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


@pytest.mark.parametrize(
    ("states", "exit_on_error", "expected"),
    [
        ("ready ready", True, True),
        ("ready failed", True, False),
        ("ready failed", False, True),
        ("ready loading", False, False),
        ("ready again", False, True),
        ("failed failed", False, False),
    ],
)
def test_when_a_server_is_ready(states, exit_on_error, expected):
    """``again``: it failed, and is being loaded once more."""
    statuses = [
        {"state": "loading" if state == "again" else state, "attempted": state != "loading"} for state in states.split()
    ]
    assert ready(statuses, exit_on_error) is expected
