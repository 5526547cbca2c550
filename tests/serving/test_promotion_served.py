"""From ``promote`` to the answer of the new version, through a real registry and a real server process."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import requests

import mlflow_trt

from .registered import answer, registry, rows  # noqa: F401
from .running import request, served

pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [(), ("--http-processes", "2")], ids=["one process", "HTTP workers"])
def test_a_promoted_version_answers_and_no_request_fails(registry, tmp_path, options):  # noqa: F811
    first, second = registry.add(1.0), registry.add(5.0)
    shifts = {first: 1, second: 5}
    registry.point(first)
    x = rows(3)["x"]
    wrong: list[object] = []
    versions: list[str] = []
    stop = threading.Event()

    def client() -> None:
        session = requests.Session()
        while not stop.is_set():
            found = session.post(f"{server.url}/v2/models/m/infer", json=request(x.tolist()), timeout=30)
            content = found.json()
            if found.status_code != 200:
                wrong.append(content)
                continue
            version = content["model_version"]
            versions.append(version)
            if content["outputs"][0]["data"] != answer(x, shifts[version]).ravel().tolist():
                wrong.append(content)

    environment = {**registry.server.env, "MLFLOW_TRT_CACHE": str(tmp_path / "cache")}
    with served(tmp_path, f"--model=m={registry.uri}", "--interval", "0.2", *options, env=environment) as server:
        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        mlflow_trt.promote(registry.name, second, gates=[])
        _until(lambda: versions and versions[-1] == second)
        status = server.get("/v2/models/m").json()["status"]
        mlflow_trt.rollback(registry.name)
        _until(lambda: versions[-1] == first)
        stop.set()
        for thread in threads:
            thread.join()
        assert server.end() == 0
    assert not wrong
    assert (status["version"], status["swaps"], status["last_failure"]) == (second, 1, None)
    np.testing.assert_array_equal(sorted({*versions}), sorted([first, second]))


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
