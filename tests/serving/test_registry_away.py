"""A registry that goes away: what was loaded answers without it, and a server may start from its cache if told to."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .light import until
from .registered import Registry, proxy, registry, rows
from .running import Served, counted, request, served

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
