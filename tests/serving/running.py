"""A real ``mlflow-trt serve`` in a process of its own, for tests that ask it over the network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import servers

READY_SECONDS = 90
TOKEN = "a secret"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Served:
    """A running server."""

    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **arguments)

    def post(self, path: str, data: Any = b"", **arguments: Any) -> requests.Response:
        return requests.post(self.url + path, data, timeout=30, **arguments)

    def infer(self, content: Any, model: str = "m", **arguments: Any) -> requests.Response:
        return requests.post(f"{self.url}/v2/models/{model}/infer", json=content, timeout=30, **arguments)

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def alive(self) -> bool:
        """Whether it still answers a right request."""
        return self.get("/v2/health/ready").status_code == 200


@contextlib.contextmanager
def served(
    folder: Path, *arguments: str, env: Mapping[str, str] = {}, grpc: bool = False, backend: str = "reference"
) -> Iterator[Served]:
    """Starts ``mlflow-trt serve`` and waits until it is ready.

    Args:
        folder: Where its log goes.
        arguments: The models, and further options.
        env: Environment variables.
        grpc: Whether it listens for gRPC too.
        backend: What runs the models.
    """
    port, grpc_port = servers._free_ports(2)
    log = folder / f"serve-{port}.log"
    options = ["--backend", backend, "--port", str(port), *(["--grpc-port", str(grpc_port)] if grpc else [])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow_trt", "serve", *arguments, *options],
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
            start_new_session=True,
        )
    try:
        wait(port, process, log)
        yield Served(port, grpc_port, process, log)
    finally:
        # Its children too, whatever the test did to it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = READY_SECONDS) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready; its log ends:\n{log.read_text(errors='replace')[-3000:]}")


def request(x: Any, **more: Any) -> dict[str, Any]:
    """An inference request in JSON."""
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [len(x), 4], "data": [v for row in x for v in row]}],
        **more,
    }


def counted(server: Served, **arguments: Any) -> dict[str, float]:
    """What Prometheus reads, by name and labels."""
    lines = [line for line in server.get("/metrics", **arguments).text.splitlines() if line[0] != "#"]
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def lines_of(server: Served, identifier: str) -> list[dict[str, Any]]:
    """What the access log has of a request."""
    return [line for line in map(json.loads, server.lines()) if line.get("request_id") == identifier]


def whole(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of a real server beside tests of parts: it is slow, and shares the server with others."""
    return pytest.mark.slow(pytest.mark.xdist_group("serve")(test))
