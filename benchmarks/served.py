"""A running ``mlflow-trt serve``, and clients that cost little beside what they measure.

A request is written once, as the bytes that go over the wire; a client sends them and reads the response. Clients of a
load run in processes of their own, so that they do not take the interpreter of what they measure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

READY_SECONDS = 240
WARM_UP_SECONDS = 0.5
"""Of a load, at its begin, which do not count."""


@dataclass
class Server:
    """A server that answers."""

    port: int
    pid: int
    log: Path

    def metrics(self) -> dict[str, float]:
        """Returns what Prometheus would read: sample with labels → value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def cpu_seconds(self) -> Cpu:
        """Returns the processor time that was used so far; zeros where the system does not tell."""
        try:
            folder = Path(f"/proc/{self.pid}")
            http_workers = [pid for task in folder.glob("task/*/children") for pid in task.read_text().split()]
            event_loop = _used(folder / "task" / str(self.pid))
            return Cpu(_all_used(folder), event_loop, sum(_all_used(Path("/proc") / pid) for pid in http_workers))
        except OSError:
            return Cpu(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Cpu:
    """Processor seconds."""

    engines: float
    """Of the engines' process."""
    event_loop: float
    """Of the thread in it that HTTP workers, or clients, talk to."""
    http_workers: float
    """Of all processes that only speak HTTP."""

    @property
    def all(self) -> float:
        """Of the server as a whole."""
        return self.engines + self.http_workers

    def since(self, before: Cpu) -> Cpu:
        """What was used since then."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return Cpu(*(now - then for now, then in pairs))


def _all_used(process: Path) -> float:
    # Of the threads that are there; what others used is forgotten, so it takes a server that starts none meanwhile.
    return sum(_used(thread) for thread in (process / "task").iterdir())


def _used(thread: Path) -> float:
    # Nanoseconds; /proc/PID/stat has hundredths of a second.
    return int((thread / "schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def serving(
    uri: str | Path,
    name: str,
    work: Path,
    *options: str,
    env: Mapping[str, str] = {},
    checkout: Path | None = None,
) -> Iterator[Server]:
    """Runs ``mlflow-trt serve`` and waits until it is ready.

    Args:
        uri: The model.
        name: What clients call it.
        work: Where its log goes.
        options: Further options of the command.
        env: Environment variables to set.
        checkout: The repository whose package it is; default: what is installed.
    """
    if checkout is not None:
        path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
        env = {**env, "PYTHONPATH": path}
    port = free_port()
    log = work / f"serve-{port}.log"
    command = [sys.executable, "-m", "mlflow_trt", "serve", "--model", f"{name}={uri}", "--port", str(port), *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env}, cwd=checkout)
    try:
        wait_until(f"http://127.0.0.1:{port}/v2/health/ready", process, log)
        yield Server(port, process.pid, log)
    finally:
        end(process)


def wait_until(url: str, process: subprocess.Popen[Any], log: Path, seconds: float = READY_SECONDS) -> None:
    """Waits until a URL answers with 200.

    Raises:
        RuntimeError: The process ended, or the time is over; with the end of its log.
    """
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process, in order if it can."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_request(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Returns a POST request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def infer_request(model: str, inputs: Mapping[str, np.ndarray], output: str) -> bytes:
    """Returns an inference request in the binary extension of the Open Inference Protocol, answer in binary too."""
    datatypes = {"float32": "FP32", "uint8": "UINT8"}
    header = {
        "inputs": [
            {
                "name": name,
                "datatype": datatypes[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    body = text + b"".join(array.tobytes() for array in inputs.values())
    return http_request(f"/v2/models/{model}/infer", {"Inference-Header-Content-Length": str(len(text))}, body)


class Connection:
    """A keep-alive connection that sends prepared requests."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 16)

    def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Sends a request; returns the response's status, head and body.

        Raises:
            ConnectionError: The server closed the connection.
        """
        self._socket.sendall(request)
        received = bytearray()
        while (split := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        head = bytes(received[:split]).lower()
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        if length is None:  # none of the servers here sends chunks for these answers
            raise ConnectionError("the response has no length")
        whole = split + 4 + int(length[1])
        while len(received) < whole:
            received += self._receive()
        return int(head[9:12]), head, bytes(received[split + 4 : whole])

    def close(self) -> None:
        """Closes it."""
        self._socket.close()

    def _receive(self) -> memoryview:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionError("the server closed the connection")
        return memoryview(self._buffer)[:count]


def answer_of(head: bytes, body: bytes) -> tuple[str, np.ndarray]:
    """Reads the version and the one float32 output of a binary inference response."""
    length = re.search(rb"inference-header-content-length: (\d+)", head)
    assert length is not None
    header = json.loads(body[: int(length[1])])
    return header["model_version"], np.frombuffer(body, np.float32, offset=int(length[1]))


@dataclass
class Load:
    """What a load found."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    """Seconds of each answered request."""
    statuses: Counter[str] = field(default_factory=Counter)
    """HTTP status, ``"broken"`` for a connection that failed, ``"mixture"`` for an answer that is not its version's."""

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.statuses["200"] / self.seconds


def load(
    port: int,
    request: bytes,
    clients: int,
    seconds: float,
    expected: Mapping[str, np.ndarray] | None = None,
    processes: int = 4,
    enough: threading.Event | None = None,
) -> Load:
    """Lets clients ask without a pause, each on its own connection.

    Args:
        port: The server's.
        request: What each asks.
        clients: How many.
        seconds: How long, after the warm-up.
        expected: What each version answers: answers are compared with it. None: they are not looked at.
        processes: How many processes the clients share.
        enough: Set to end it sooner; the rate is then not known.
    """
    context = multiprocessing.get_context("spawn")
    processes = min(processes, clients)
    shares = [clients // processes + (index < clients % processes) for index in range(processes)]
    results = context.SimpleQueue()
    begin, ended = context.Barrier(processes), context.Event()
    workers = [
        context.Process(target=_work, args=(port, request, share, seconds, expected, begin, ended, results))
        for share in shares
    ]
    for worker in workers:
        worker.start()
    if enough is not None and enough.wait(seconds):
        ended.set()
    found = Load(seconds)
    for _ in workers:
        latencies, statuses = results.get()
        found.latencies += latencies
        found.statuses.update(statuses)
    for worker in workers:
        worker.join()
    return found


def _work(
    port: int,
    request: bytes,
    clients: int,
    seconds: float,
    expected: Mapping[str, np.ndarray] | None,
    begin: Any,
    ended: Any,
    results: Any,
) -> None:
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    begin.wait()
    start = time.perf_counter() + WARM_UP_SECONDS
    stop = start + seconds

    def client() -> None:
        mine: list[float] = []
        counts: Counter[str] = Counter()
        connection = Connection(port)
        while (now := time.perf_counter()) < stop and not ended.is_set():
            try:
                status, head, body = connection.ask(request)
            except OSError:
                counts["broken"] += 1
                connection = Connection(port)
                continue
            if start <= now:
                mine.append(time.perf_counter() - now)
                counts[_kind(status, head, body, expected)] += 1
        connection.close()
        latencies.extend(mine)
        statuses.update(counts)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((latencies, dict(statuses)))


def _kind(status: int, head: bytes, body: bytes, expected: Mapping[str, np.ndarray] | None) -> str:
    if status != 200 or expected is None:
        return str(status)
    version, answer = answer_of(head, body)
    wanted = expected.get(version)
    near = wanted is not None and np.linalg.norm(answer - wanted) <= 2e-2 * np.linalg.norm(wanted)
    return "200" if near else "mixture"
