"""SIGTERM while clients ask, again and again: whether a request that the server took is ever lost.

``python -m benchmarks.ending [--runs 25]``. Needs no GPU: the reference backend answers. HTTP and gRPC, each with HTTP
in the engines' process and in two of its own: so many runs each. A run starts a server, has clients ask without a
pause, sends SIGTERM, and compares what the clients got with the server's log. Exit status 1 if a request was lost.

Servers are forked from a process that has imported PyTorch, which would be most of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import multiprocessing.process
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .askers import Askers
from .machine import introduction
from .served import READY_SECONDS, free_port

NAME = "m"
SHIFT = 1.0
DRAIN = 0.5
HTTP = {"HTTP, JSON": 2, "HTTP, binary": 2, "HTTP, a connection each": 2, "/invocations": 1}
GRPC = {"gRPC": 3, "gRPC, calls in flight": 1}
CLIENTS = {"HTTP": HTTP, "gRPC": GRPC}
PROCESSES = {"one process": (), "two HTTP processes": ("--http-processes", "2")}


_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["mlflow.pyfunc", "torch", "mlflow_trt.serving.http.app", "mlflow_trt.serving.http.server"]
)


@dataclass
class Row:
    """What the runs of one combination found."""

    runs: int = 0
    answered: int = 0
    after: int = 0
    """Answers after SIGTERM."""
    refused: int = 0
    with_loss: int = 0
    """Runs in which a request was lost."""
    bad_status: int = 0
    """Runs in which the server did not end with 0."""
    lost: list[str] = field(default_factory=list)


def run(folder: Path, work: Path, kinds: dict[str, int], options: Sequence[str]) -> Row:
    """Runs one server to its end."""
    port, grpc_port = free_port(), free_port()
    log = work / f"serve-{port}.log"
    command = ["serve", "--model", f"{NAME}={folder}", "--backend", "reference"]
    command += ["--port", str(port), "--grpc-port", str(grpc_port), "--drain", str(DRAIN), *options]
    server = _FORKED.Process(target=_serve, args=(command, log))
    server.start()
    try:
        _ready(f"http://127.0.0.1:{port}/v2/health/ready", server, log)
        askers = Askers((port, grpc_port), NAME, "", {"": SHIFT}, kinds)
        until = time.monotonic() + 60
        enough = 10 * sum(kinds.values())
        while askers.asked.answered.total() < enough and not askers.asked.failures and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))  # somewhere between two requests
        before = askers.asked.answered.total()
        askers.ending.set()
        server.terminate()  # SIGTERM
        server.join(120)
        status = server.exitcode
        askers.join(60)
    finally:
        server.kill()
    lost = askers.asked.lost(log.read_text(errors="replace").splitlines())
    answered = askers.asked.answered.total()
    return Row(1, answered, answered - before, askers.asked.refused.total(), bool(lost), status != 0, lost)


def _serve(arguments: Sequence[str], log: Path) -> None:
    """``mlflow-trt`` with a log, in a process of its own."""
    import mlflow_trt.cli.main

    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    mlflow_trt.cli.main.main(arguments)


def _ready(url: str, server: multiprocessing.process.BaseProcess, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and server.is_alive():
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"The server did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ending", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=25, help="of each of the four")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time")
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.at_once < 1:
        parser.error("--runs and --at-once must be 1 or more")
    ways = [(clients, processes) for clients in CLIENTS for processes in PROCESSES]
    rows = {way: Row() for way in ways}
    head = introduction(f"python -m benchmarks.ending --runs {options.runs} --at-once {options.at_once}")
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-ending-") as work:
        folder = save_model(Path(work) / "model")
        with ThreadPoolExecutor(options.at_once) as pool:
            running = [
                (way, pool.submit(run, folder, Path(work), CLIENTS[way[0]], PROCESSES[way[1]]))
                for way in ways * options.runs
            ]
            for way, future in running:
                for name, value in vars(future.result()).items():
                    setattr(rows[way], name, getattr(rows[way], name) + value)
    print(head)
    print("| clients | HTTP in | runs | answers | of them after SIGTERM | refused | runs that lost a request |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (clients, processes), row in rows.items():
        counts = " | ".join(f"{n:,}" for n in (row.runs, row.answered, row.after, row.refused, row.with_loss))
        print(f"| {clients} | {processes} | {counts} |")
    wrong = sum(row.bad_status for row in rows.values())
    print(f"\nExit status other than 0: {wrong} of {sum(row.runs for row in rows.values())} runs. Drain: {DRAIN:g} s.")
    for loss in [loss for row in rows.values() for loss in row.lost][:20]:
        print(f"- {loss}")
    return 1 if wrong or any(row.with_loss for row in rows.values()) else 0


def save_model(folder: Path) -> Path:
    """Writes a model that adds :data:`SHIFT` to twice the first three of its four numbers."""
    import torch

    import mlflow_trt

    class Shifted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] * 2 + SHIFT

    inputs = [mlflow_trt.Input(((1, 2, 8), 4), name="x")]
    mlflow_trt.save_model(Shifted().eval(), folder, inputs, output_names=["y"])
    return folder


if __name__ == "__main__":
    sys.exit(main())
