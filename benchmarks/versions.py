"""Whether this checkout's server is as fast as another one's: both run at the same time and are asked in turn.

``python -m benchmarks.versions OTHER_CHECKOUT [--starts 15] [--rounds 4]``. Without a GPU the
reference backend answers.

The model is the echo of :mod:`benchmarks.echoing`. One process loads and calls it, with batch 1 and 8; one client asks
the server on one connection, with the same; 64 clients with batch 1; servers by the clock, and by the processor time
that one used for an answer. Two servers of one version may differ by a tenth for as long as they live, so both are
started many times. A start's factor is the median over its rounds of this one's figure over the other's in the same
round, so that what else the machine does meets both; what counts is the mean of all starts' factors, beside its
standard error. Exit status 1 if one is beyond 3 %.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .context import ROOT, Context, has_gpu
from .echoing import model
from .machine import introduction
from .served import Connection, Server, http_request, infer_request, load, serving
from .timing import Rounds, median, ratio

CLIENTS = 64
MOST = 1.03
PER_SECOND = "per second"
REQUESTS = "mlflow_trt_requests_total{"


_CALLER = """
import sys, time
import numpy as np
import mlflow_trt
engine = mlflow_trt.load_model(sys.argv[1], backend=sys.argv[2])
for line in sys.stdin:
    batch, calls = map(int, line.split())
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    for _ in range(5):
        engine.predict({"x": x})
    times = [time.perf_counter()]
    for _ in range(calls):
        engine.predict({"x": x})
        times.append(time.perf_counter())
    print(*np.diff(times).tolist(), flush=True)
"""
"""Loads a model and calls it with each batch that it is given, so many times; with either checkout's package."""

Found = dict[str, tuple[str, Rounds, Rounds]]
"""What was measured → its unit, and this one's and the other's figures."""


def compare(other: Path, rounds: int, work: Path, turn: int) -> Found:
    """Starts both and measures them.

    Args:
        other: The other's checkout.
        rounds: How often the load of many clients meets each; the others are asked four times as often.
        work: A folder for model and logs.
        turn: Which one is first is decided by whether this is odd.
    """
    folder = model(Context(work, quick=False, budget=0))
    backend = "tensorrt" if has_gpu() else "reference"
    found: Found = {}
    checkouts = [("this", ROOT), ("other", other)][:: 1 if turn % 2 else -1]
    with contextlib.ExitStack() as stack:
        callers = {name: stack.enter_context(_caller(folder, backend, checkout)) for name, checkout in checkouts}
        for batch in (1, 8):
            calls: dict[str, Rounds] = {name: [] for name in callers}
            for again in range(rounds * 3):
                for name in list(callers)[:: 1 if again % 2 else -1]:
                    calls[name].append(_called(callers[name], batch, 400 // batch))
            found[f"batch {batch}, predict: p50"] = ("ms", _scaled(calls["this"]), _scaled(calls["other"]))
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, "echo", work, "--backend", backend, checkout=checkout))
            for name, checkout in checkouts
        }

        def one_client(what: str, request: bytes, calls: int) -> None:
            ways = {name: _asking(server.port, request) for name, server in servers.items()}
            times: dict[str, Rounds] = {name: [] for name in servers}
            used: dict[str, Rounds] = {name: [] for name in servers}
            for again in range(rounds * 3):
                for name in list(servers)[:: 1 if again % 2 else -1]:
                    seconds, cpu = _one_turn(servers[name], ways[name], calls)
                    times[name].append(seconds)
                    used[name].append([cpu])
            found[f"{what}, one client: p50"] = ("ms", _scaled(times["this"]), _scaled(times["other"]))
            found[f"{what}, one client: processor"] = ("ms", _scaled(used["this"]), _scaled(used["other"]))

        for batch in (1, 8):
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
            one_client(f"batch {batch}", infer_request("echo", {"x": x}, "y"), 100 // batch)
        one_client("metadata", http_request("/v2/models/echo", {}, b"").replace(b"POST", b"GET", 1), 200)
        request = infer_request("echo", {"x": np.zeros((1, 3, 224, 224), np.float32)}, "y")
        latencies: dict[str, Rounds] = {name: [] for name in servers}
        rates: dict[str, Rounds] = {name: [] for name in servers}
        used: dict[str, Rounds] = {name: [] for name in servers}
        loop: dict[str, Rounds] = {name: [] for name in servers}
        for again in range(rounds):
            for name in list(servers)[:: 1 if again % 2 else -1]:
                answered, before = _answered(servers[name]), servers[name].cpu_seconds()
                asked = load(servers[name].port, request, CLIENTS, 1.5, processes=2)
                cpu, answers = servers[name].cpu_seconds().since(before), _answered(servers[name]) - answered
                used[name].append([cpu.all / answers])
                loop[name].append([cpu.event_loop / answers])
                assert set(asked.statuses) == {"200"}, asked.statuses
                latencies[name].append(asked.latencies)
                rates[name].append([asked.rate])
        found[f"batch 1, {CLIENTS} clients: p50"] = ("ms", _scaled(latencies["this"]), _scaled(latencies["other"]))
        found[f"batch 1, {CLIENTS} clients: processor"] = ("ms", _scaled(used["this"]), _scaled(used["other"]))
        found[f"batch 1, {CLIENTS} clients: its event loop"] = ("ms", _scaled(loop["this"]), _scaled(loop["other"]))
        found[f"batch 1, {CLIENTS} clients: answers"] = (PER_SECOND, rates["this"], rates["other"])
    return found


@contextlib.contextmanager
def _caller(folder: Path, backend: str, checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that calls the model itself."""
    command = [sys.executable, "-c", _CALLER, str(folder), backend]
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _called(caller: subprocess.Popen[str], batch: int, calls: int) -> list[float]:
    """Has it call the model; the seconds of each call."""
    assert caller.stdin is not None
    assert caller.stdout is not None
    print(batch, calls, file=caller.stdin, flush=True)
    return [float(seconds) for seconds in caller.stdout.readline().split()]


def _one_turn(server: Server, ask: Callable[[], object], calls: int) -> tuple[list[float], float]:
    """Asks again and again; the seconds of each call, and the processor seconds that the server used for one."""
    for _ in range(3):
        ask()
    seconds, before = [], server.cpu_seconds()
    for _ in range(calls):
        begin = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - begin)
    return seconds, server.cpu_seconds().since(before).all / calls


def _answered(server: Server) -> float:
    """How many requests it has answered."""
    metrics = server.metrics()
    return sum(value for key, value in metrics.items() if key.startswith(REQUESTS))


def _asking(port: int, request: bytes) -> Callable[[], object]:
    connection = Connection(port)

    def ask() -> None:
        status, _, body = connection.ask(request)
        assert status == 200, body[:300]

    return ask


def _scaled(rounds: Rounds) -> Rounds:
    return [[seconds * 1e3 for seconds in one] for one in rounds]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    head = introduction(f"python -m benchmarks.versions OTHER --starts {options.starts} --rounds {options.rounds}")
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-versions-") as work:
        starts = [compare(options.other.resolve(), options.rounds, Path(work), n) for n in range(options.starts)]
    print(head)
    print(f"This is {_commit(ROOT)}, the other {_commit(options.other)}.\n")
    print("| what | this | the other | slower by | standard error | of one start |\n" + "| --- " + "| ---: " * 5 + "|")
    worst = 0.0
    for what, (unit, _, _) in starts[0].items():
        mine = [r for found in starts for r in found[what][1]]
        theirs = [r for found in starts for r in found[what][2]]
        each = [_factor(*found[what]) for found in starts]
        factor = statistics.fmean(each)
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        worst = max(worst, factor)
        figures = f"{median(mine):.4g} {unit} | {median(theirs):.4g} {unit} | {factor:.3f} | {error:.3f}"
        print(f"| {what} | {figures} | {min(each):.3f} to {max(each):.3f} |")
    return 0 if worst <= MOST else 1


def _factor(unit: str, mine: Rounds, theirs: Rounds) -> float:
    return ratio(theirs, mine) if unit == PER_SECOND else ratio(mine, theirs)


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h (%s)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
