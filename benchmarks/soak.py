"""Good and bad clients of one server for minutes: whether the good ones notice, and whether anything grows.

``python -m benchmarks.soak [--seconds 600]``. Needs no GPU: the reference backend answers. Good clients ask over HTTP
(JSON, binary tensors, MLflow's ``/invocations``) and gRPC, and check every answer. Others are slow, huge, malformed,
leave, or have a wrong token. Meanwhile the alias moves, and MLflow's server is killed and started again. At the end the
server gets SIGTERM while the good clients still ask. Exit status 1 if something was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .askers import KINDS, Asked, Askers
from .machine import introduction
from .served import READY_SECONDS, end, free_port, http_request, wait_until

TOKEN = "soak"
NAME = "soak"
SHIFTS = {"1": 1.0, "2": 5.0}
"""Version → what it adds to twice its input."""
PROBE = 0.2
"""Seconds that a probe may take, at the 99th percentile."""
GROWTH = 1.10
HUGE = 24 << 20
"""Bytes of a body."""
DRAIN = 2.0


@dataclass
class Found:
    """What was seen; threads only append to it."""

    good: Asked = field(default_factory=Asked)
    at_sigterm: int = 0
    """Right answers until then."""
    bad: Counter[str] = field(default_factory=Counter)
    probes_failed: list[str] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)
    moves: int = 0
    restarts: int = 0
    status: int | None = None
    lines: list[str] = field(default_factory=list)

    def verdicts(self) -> dict[str, tuple[str, bool]]:
        """Each requirement: what was found, and whether that is right."""
        p99 = statistics.quantiles(self.probes, n=100)[98] if len(self.probes) > 1 else float("inf")
        memory, descriptors = growth(self.memory), growth(self.descriptors)
        unreadable = [line for line in self.lines if not _is_object(line)]
        answered, lost = self.good.answered, self.lost()
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(answered.items()))
        late = answered.total() - self.at_sigterm
        return {
            "requests of good clients that were lost": (f"{len(lost)} of {answered.total():,}", not lost),
            "right answers, by kind of client": (kinds, len(answered) == len(KINDS)),
            "right answers after SIGTERM": (f"{late:,}", late > 0),
            "probes that failed": (f"{len(self.probes_failed)} of {len(self.probes):,}", not self.probes_failed),
            "probes, 99th percentile": (f"{p99 * 1000:.0f} ms of {len(self.probes):,}", p99 < PROBE),
            "memory, last quarter ÷ second": (f"{memory:.2f}", memory <= GROWTH),
            "descriptors, last quarter ÷ second": (f"{descriptors:.2f}", descriptors <= GROWTH),
            "lines of the log that are not JSON": (f"{len(unreadable)} of {len(self.lines):,}", not unreadable),
            "exit status after SIGTERM": (str(self.status), self.status == 0),
        }

    def lost(self) -> list[str]:
        """The good clients' requests that were."""
        return self.good.lost(self.lines)


def growth(samples: list[float]) -> float:
    """The median of the last quarter over that of the second, before which all is still warming up."""
    quarter = len(samples) // 4
    if not quarter:
        return 1.0
    return statistics.median(samples[-quarter:]) / max(statistics.median(samples[quarter : 2 * quarter]), 1)


def soak(seconds: float, work: Path) -> Found:
    """Runs everything for so long; the start comes on top."""
    found = Found()
    with _registry(work) as registry:
        _log_versions(registry.uri)
        port, grpc_port = free_port(), free_port()
        token = work / "token"
        token.write_text(TOKEN)
        log = work / "serve.log"
        command = [sys.executable, "-m", "mlflow_trt", "serve", f"models:/{NAME}@champion", "--backend", "reference"]
        command += ["--port", str(port), "--grpc-port", str(grpc_port), "--token-file", str(token)]
        command += ["--interval", "0.5", "--drain", str(DRAIN)]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.uri}
        with log.open("w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            wait_until(f"http://127.0.0.1:{port}/v2/health/ready", server, log)
            _run(found, seconds, server, port, grpc_port, registry)
        finally:
            end(server)
        found.lines = log.read_text(errors="replace").splitlines()
    return found


def _run(
    found: Found, seconds: float, server: subprocess.Popen[Any], port: int, grpc_port: int, registry: _Registry
) -> None:
    ending = threading.Event()
    begin = time.monotonic()

    def again(what: Callable[[], None], pause: float) -> Callable[[], None]:
        def run() -> None:
            while not ending.wait(pause) and time.monotonic() - begin < seconds + 60:
                what()

        return run

    def sample() -> None:
        memory, descriptors = use_of(server.pid)
        found.memory.append(memory)
        found.descriptors.append(descriptors)

    def bad(name: str, behave: Callable[[int], None]) -> None:
        with contextlib.suppress(OSError):  # cut off, as it should be
            behave(port)
        found.bad[name] += 1

    tasks = [again(lambda: _probe(found, port), 0.02), again(sample, max(seconds / 200, 0.05))]
    for name, behave in BAD.items():
        tasks.append(again(lambda name=name, behave=behave: bad(name, behave), min(max(seconds / 100, 0.2), 1)))
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    askers = Askers((port, grpc_port), NAME, TOKEN, SHIFTS, dict.fromkeys(KINDS, 1))
    found.good = askers.asked
    for turn in range(8):
        ending.wait(max(begin + seconds * (turn + 1) / 9 - time.monotonic(), 0))
        if turn == 3:
            registry.kill()
        elif turn == 4:
            registry.start()
            found.restarts += 1
        else:
            registry.point(str(turn % 2 + 1))
            found.moves += 1
    ending.wait(max(begin + seconds - time.monotonic(), 0))
    ending.set()
    for thread in threads:
        thread.join(60)
    found.at_sigterm = found.good.answered.total()
    askers.ending.set()
    server.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        found.status = server.wait(90)
    askers.join(90)


# --- bad clients ---


def _slow(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for byte in b"GET /v2/health":
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def _huge(port: int) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"0.125," * (HUGE // 6) + b"1]}]}"
    _send(port, _authorized(http_request(f"/v2/models/{NAME}/infer", {}, body)))


def _malformed(port: int) -> None:
    _send(port, random.Random(port).randbytes(1000))
    _send(port, _authorized(http_request(f"/v2/models/{NAME}/infer", {}, b'{"inputs": [{]')))


def _leaving(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_authorized(b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _stranger(port: int) -> None:
    _send(port, http_request(f"/v2/models/{NAME}/infer", {"Authorization": "Bearer wrong"}, b"{}"))


def _authorized(request: bytes) -> bytes:
    return request.replace(b"\r\n", f"\r\nAuthorization: Bearer {TOKEN}\r\n".encode(), 1)


def _send(port: int, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        connection.recv(1 << 16)


BAD = {"slow": _slow, "huge": _huge, "malformed": _malformed, "leaving": _leaving, "wrong token": _stranger}


def _probe(found: Found, port: int) -> None:
    begin = time.perf_counter()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30) as response:
            response.read()
    except OSError as error:
        found.probes_failed.append(f"probe: {error}")
    found.probes.append(time.perf_counter() - begin)


def use_of(pid: int) -> tuple[float, float]:
    """Resident bytes and open descriptors of a process and its children."""
    memory = descriptors = 0
    found = [pid]
    with contextlib.suppress(OSError):  # a thread, or below a child, has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    for each in found:
        with contextlib.suppress(OSError):
            memory += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            descriptors += len(os.listdir(f"/proc/{each}/fd"))
    return float(memory), float(descriptors)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# --- MLflow's server ---


class _Registry:
    """``mlflow server``, which may be killed and started again."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        folder, log = self._work / "registry", self._work / "registry.log"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
        environment = {**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [*command, "--artifacts-destination", str(folder / "artifacts")],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        wait_until(f"{self.uri}/health", self._process, log, READY_SECONDS)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def point(self, version: str) -> None:
        import mlflow

        mlflow.MlflowClient(self.uri).set_registered_model_alias(NAME, "champion", version)


@contextlib.contextmanager
def _registry(work: Path) -> Iterator[_Registry]:
    registry = _Registry(work)
    try:
        registry.start()
        yield registry
    finally:
        registry.kill()


def _log_versions(uri: str) -> None:
    import mlflow
    import torch

    import mlflow_trt

    class Shifted(torch.nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] * 2 + self.shift

    mlflow.set_tracking_uri(uri)
    for version, shift in SHIFTS.items():
        inputs = [mlflow_trt.Input(((1, 2, 8), 4), name="x")]
        info = mlflow_trt.log_model(
            Shifted(shift).eval(), "m", inputs=inputs, output_names=["y"], registered_model_name=NAME
        )
        assert str(info.registered_model_version) == version
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args(arguments)
    if not 5 <= options.seconds <= 86_400:
        parser.error("--seconds must be 5 to 86400")
    head = introduction(f"python -m benchmarks.soak --seconds {options.seconds:g}")
    with (
        tempfile.TemporaryDirectory(prefix="mlflow-trt-soak-") as work,
        contextlib.redirect_stdout(sys.stderr),  # MLflow prints where its runs are
    ):
        os.environ["MLFLOW_TRT_CACHE"] = f"{work}/cache"
        found = soak(options.seconds, Path(work))
    print(head)
    print("| what | found | as it should be |\n| --- | --- | --- |")
    for what, (value, right) in found.verdicts().items():
        print(f"| {what} | {value} | {'yes' if right else '**no**'} |")
    print(f"\nBad clients: {dict(found.bad)}. The alias moved {found.moves} times, the registry was away once.")
    print(f"Load of the machine at the end: {os.getloadavg()[0]:.1f}.")
    for failure in (found.probes_failed + found.lost())[:10]:
        print(f"- {failure}")
    for line in [line for line in found.lines if '"level": "error"' in line or '"status": "CANCELLED"' in line][:10]:
        print(f"- {line}")
    return 0 if all(right for _, right in found.verdicts().values()) else 1


if __name__ == "__main__":
    sys.exit(main())
