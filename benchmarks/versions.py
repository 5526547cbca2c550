"""Whether this checkout's server is as fast as another one's: both run at the same time and are asked in turn.

``python -m benchmarks.versions OTHER_CHECKOUT [--starts 7] [--rounds 5]``. Needs no GPU: the reference backend answers.
One client on one connection with an image of batch 1 and 8, the echo of :mod:`benchmarks.echoing`; 64 clients with
batch 1. Two servers of one version may differ by 5 % for as long as they live, so both are started several times. A
factor is the median over all rounds of this one's figure over the other's in the same round, so that what else the
machine does meets both; beside it stand the least and the largest of one start. Exit status 1 if one is beyond 3 %.
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
    found: Found = {}
    checkouts = [("this", ROOT), ("other", other)][:: 1 if turn % 2 else -1]
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, "echo", work, "--backend", "reference", checkout=checkout))
            for name, checkout in checkouts
        }

        def one_client(what: str, request: bytes, calls: int) -> None:
            ways = {name: _asking(server.port, request) for name, server in servers.items()}
            times = interleave(ways, rounds=rounds * 4, calls=calls)
            found[f"{what}, one client: p50"] = ("ms", _scaled(times["this"]), _scaled(times["other"]))

        for batch in (1, 8):
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
            one_client(f"batch {batch}", infer_request("echo", {"x": x}, "y"), 10)
        one_client("metadata", http_request("/v2/models/echo", {}, b"").replace(b"POST", b"GET", 1), 50)
        request = infer_request("echo", {"x": np.zeros((1, 3, 224, 224), np.float32)}, "y")
        latencies: dict[str, Rounds] = {name: [] for name in servers}
        rates: dict[str, Rounds] = {name: [] for name in servers}
        for again in range(rounds):
            for name in list(servers)[:: 1 if again % 2 else -1]:
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
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    head = introduction(f"python -m benchmarks.versions OTHER --starts {options.starts} --rounds {options.rounds}")
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-versions-") as work:
        starts = [compare(options.other.resolve(), options.rounds, Path(work), n) for n in range(options.starts)]
    print(head)
    print(f"This is {_commit(ROOT)}, the other {_commit(options.other)}.\n")
    print("| what | this | the other | slower by | of one start |\n| --- | ---: | ---: | ---: | ---: |")
    worst = 0.0
    for what, (unit, _, _) in starts[0].items():
        mine = [r for found in starts for r in found[what][1]]
        theirs = [r for found in starts for r in found[what][2]]
        factor, each = _factor(unit, mine, theirs), [_factor(*found[what]) for found in starts]
        worst = max(worst, factor)
        spread = f"{min(each):.3f} to {max(each):.3f}"
        print(f"| {what} | {median(mine):.4g} {unit} | {median(theirs):.4g} {unit} | {factor:.3f} | {spread} |")
    return 0 if worst <= MOST else 1


def _factor(unit: str, mine: Rounds, theirs: Rounds) -> float:
    return ratio(theirs, mine) if unit == PER_SECOND else ratio(mine, theirs)


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h (%s)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
