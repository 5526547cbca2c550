"""Whether this checkout's server is as fast as another one's: both run at the same time and are asked in turn.

``python -m benchmarks.versions OTHER_CHECKOUT [--rounds 20]``. Needs no GPU: the reference backend answers. One client
on one connection with an image of batch 1 and 8, the echo of :mod:`benchmarks.echoing`; 64 clients with batch 1. A
factor is the median over the rounds of this one's figure over the other's in the same round, so that what else the
machine does meets both. Exit status 1 if one is beyond 3 %.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .context import ROOT, Context
from .echoing import model
from .machine import introduction
from .served import Connection, http_request, infer_request, load, serving
from .timing import Rounds, interleave, median, ratio

CLIENTS = 64
MOST = 1.03
PER_SECOND = "per second"


def compare(other: Path, rounds: int, work: Path) -> dict[str, tuple[str, Rounds, Rounds]]:
    """What was measured → its unit, and this one's and the other's figures."""
    folder = model(Context(work, quick=False, budget=0))
    found = {}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, "echo", work, "--backend", "reference", checkout=checkout))
            for name, checkout in (("this", ROOT), ("other", other))
        }
        requests = {f"batch {batch}": (batch, 10) for batch in (1, 8)}
        for what, (batch, calls) in requests.items():
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
            request = infer_request("echo", {"x": x}, "y")
            ways = {name: _asking(server.port, request) for name, server in servers.items()}
            times = interleave(ways, rounds=rounds * 4, calls=calls)
            found[f"{what}, one client: p50"] = ("ms", _scaled(times["this"]), _scaled(times["other"]))
        metadata = http_request("/v2/models/echo", {}, b"").replace(b"POST", b"GET", 1)
        times = interleave(
            {name: _asking(server.port, metadata) for name, server in servers.items()}, rounds=rounds * 4, calls=50
        )
        found["metadata, one client: p50"] = ("ms", _scaled(times["this"]), _scaled(times["other"]))
        request = infer_request("echo", {"x": np.zeros((1, 3, 224, 224), np.float32)}, "y")
        latencies: dict[str, Rounds] = {name: [] for name in servers}
        rates: dict[str, Rounds] = {name: [] for name in servers}
        for turn in range(rounds):
            for name in list(servers)[:: 1 if turn % 2 else -1]:
                asked = load(servers[name].port, request, CLIENTS, 1.5, processes=2)
                assert set(asked.statuses) == {"200"}, asked.statuses
                latencies[name].append(asked.latencies)
                rates[name].append([asked.rate])
        found[f"batch 1, {CLIENTS} clients: p50"] = ("ms", _scaled(latencies["this"]), _scaled(latencies["other"]))
        found[f"batch 1, {CLIENTS} clients: answers"] = (PER_SECOND, rates["this"], rates["other"])
    return found


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
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    head = introduction(f"python -m benchmarks.versions OTHER --rounds {options.rounds}")
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-versions-") as work:
        found = compare(options.other.resolve(), options.rounds, Path(work))
    print(head)
    print(f"This is {_commit(ROOT)}, the other {_commit(options.other)}.\n")
    print("| what | this | the other | slower by |\n| --- | ---: | ---: | ---: |")
    ratios = []
    for what, (unit, mine, theirs) in found.items():
        ratios.append(ratio(theirs, mine) if unit == PER_SECOND else ratio(mine, theirs))
        print(f"| {what} | {median(mine):.4g} {unit} | {median(theirs):.4g} {unit} | {ratios[-1]:.3f} |")
    return 0 if max(ratios) <= MOST else 1


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h (%s)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
