"""How often the latency gate promotes and refuses, with the noise of calls that were recorded.

python -m benchmarks.gate_power record --out FILE         times two builds of one network, as the gate does
python -m benchmarks.gate_power simulate FILE...          runs the gate on what was recorded, and prints a table

Recorded calls of both builds are drawn in blocks, with replacement: within a block they keep their order, so that calls
which follow each other stay as alike as they were, outliers stay, and what slowed both slows both. The gate itself
runs, on a clock that moves by the drawn times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_trt.registry import latency

from . import context
from .machine import describe

UNIT = 1e-7
"""Seconds: recorded times are whole numbers of these."""
TURN_S = 1.0
"""How long a point is recorded before the next has its turn."""
BLOCK_S = 0.25
"""How long calls are kept together."""


@dataclass(frozen=True)
class Recording:
    """Calls of two builds of one network, in turn."""

    name: str
    """The network, and where it ran."""
    points: tuple[latency.Timed, ...]


@dataclass(frozen=True)
class Truth:
    """How the candidate's calls differ from the champion's."""

    name: str
    times: float = 1.0
    plus: float = 0.0
    """Of the champion's median, added to each call."""
    one_point: bool = False
    """Whether at the first point alone."""
    exchanged: bool = True
    """Whether the two builds change places by chance, block by block, so that neither is the faster one."""


TRUTHS = (
    Truth("the two builds as recorded", exchanged=False),
    Truth("as fast"),
    Truth("1.1 times as slow", times=1.1),
    Truth("1.2 times as slow", times=1.2),
    Truth("1.2 times as slow at one point", times=1.2, one_point=True),
    Truth("each call longer by 0.2 medians", plus=0.2),
)


@dataclass(frozen=True)
class Outcome:
    """What many promotions came to."""

    promoted: int
    refused: int
    seconds: tuple[float, ...]
    """Of each."""


# ---- recording -----------------------------------------------------------------------------------------------------


def record(model: str, seconds: float, most_calls: int, work: Path, threads: int = 1) -> dict[str, Any]:
    """Builds a network twice, and times both at every profile point.

    Args:
        model: One of :data:`benchmarks.context.MODELS`.
        seconds: For all points together.
        most_calls: Of each build at each point.
        work: A folder for the models.
        threads: Of PyTorch, where there is no GPU. Several wait for each other on a machine that does other work too.

    Returns:
        What :func:`read` takes, as JSON.
    """
    import mlflow_trt
    from mlflow_trt import store

    backend: Any = "tensorrt" if context.has_gpu() else "reference"
    if backend == "reference":
        import torch

        torch.set_num_threads(threads)
    folders = [work / "champion", work / "candidate"]
    for folder in folders:
        context.save(model, folder)
    with (
        mlflow_trt.load_model(folders[0], backend=backend, max_contexts=1) as champion,
        mlflow_trt.load_model(folders[1], backend=backend, max_contexts=1) as candidate,
    ):
        pairs = list(latency.pairs_of(candidate, champion, store.open_model(folders[0])))
        points = _time(pairs, seconds, most_calls)
    return {
        "schema_version": 1,
        "machine": describe(),
        "network": model,
        "backend": "TensorRT"
        if backend == "tensorrt"
        else f"PyTorch on the CPU (the reference backend, threads: {threads})",
        "calls_in_a_round": latency.CALLS,
        "unit_seconds": UNIT,
        "points": [{"label": t.label, "champion": whole(t.champion), "candidate": whole(t.candidate)} for t in points],
    }


def _time(pairs: Sequence[latency.Pair], seconds: float, most_calls: int) -> list[latency.Timed]:
    parts: dict[str, list[latency.Timed]] = {pair.label: [] for pair in pairs}
    end = time.perf_counter() + seconds
    first = True
    while first or time.perf_counter() < end:
        for pair in pairs:
            if sum(part.champion.size for part in parts[pair.label]) >= most_calls:
                continue
            for _ in range(10 if first else 2):
                pair.champion()
                pair.candidate()
            until = time.perf_counter() + min(TURN_S, seconds / len(pairs))
            parts[pair.label].append(latency.time_in_turn(pair, 1, until=until))
        first = False
        if all(sum(part.champion.size for part in found) >= most_calls for found in parts.values()):
            break
    rounds = most_calls // latency.CALLS
    return [
        latency.Timed(
            label,
            np.concatenate([part.candidate for part in found])[:rounds],
            np.concatenate([part.champion for part in found])[:rounds],
        )
        for label, found in parts.items()
    ]


def whole(seconds: np.ndarray) -> list[int]:
    """Times as the file holds them."""
    return [int(n) for n in np.rint(seconds.ravel() / UNIT)]


def read(path: Path) -> Recording:
    """Reads what was recorded."""
    content = json.loads(path.read_text())
    calls, unit = content["calls_in_a_round"], content["unit_seconds"]
    points = tuple(
        latency.Timed(
            point["label"],
            np.array(point["candidate"], float).reshape(-1, calls) * unit,
            np.array(point["champion"], float).reshape(-1, calls) * unit,
        )
        for point in content["points"]
    )
    machine = content["machine"]
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    return Recording(f"{content['network']}, {content['backend']}, {where}", points)


# ---- simulating ----------------------------------------------------------------------------------------------------


class Replay:
    """Two engines whose calls take as long as recorded ones did.

    Args:
        recorded: Calls of one point.
        truth: How the candidate differs.
        clock: Is moved by each call.
        draws: Chooses the blocks.
    """

    def __init__(self, recorded: latency.Timed, truth: Truth, clock: Clock, draws: np.random.Generator) -> None:
        self._recorded, self._truth, self._clock, self._draws = recorded, truth, clock, draws
        each = float(recorded.champion.sum() + recorded.candidate.sum()) / len(recorded.champion)
        self._length = int(np.clip(BLOCK_S / each, 1, max(len(recorded.champion) // 10, 1)))
        self._plus = truth.plus * float(np.median(recorded.champion))
        self._queues: tuple[list[float], list[float]] = ([], [])
        self._next = [0, 0]

    def champion(self) -> None:
        """A call of the champion."""
        self._call(0)

    def candidate(self) -> None:
        """A call of the candidate."""
        self._call(1)

    def _call(self, side: int) -> None:
        place = self._next[side]
        if place == len(self._queues[side]):
            self._draw()
        self._next[side] = place + 1
        self._clock.now += self._queues[side][place]

    def _draw(self) -> None:
        start = int(self._draws.integers(0, len(self._recorded.champion) - self._length + 1))
        chosen = slice(start, start + self._length)
        champion, candidate = self._recorded.champion[chosen], self._recorded.candidate[chosen]
        if self._truth.exchanged and self._draws.random() < 0.5:
            champion, candidate = candidate, champion
        self._queues[0].extend(champion.ravel().tolist())
        self._queues[1].extend((candidate.ravel() * self._truth.times + self._plus).tolist())


class Clock:
    """Seconds that pass only when a call takes them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def promote(recording: Recording, truth: Truth, points: int, gate: latency.Latency, seed: int) -> tuple[str, float]:
    """Lets the gate judge once.

    Args:
        recording: What was recorded.
        truth: How the candidate differs.
        points: How many profile points; the recorded ones in turn, each with draws of its own.
        gate: Its settings.
        seed: Of the draws.

    Returns:
        The verdict's status, and how long it took, warming up too.
    """
    clock = Clock()
    pairs = []
    for number in range(points):
        recorded = recording.points[number % len(recording.points)]
        here = Truth("as fast", exchanged=truth.exchanged) if truth.one_point and number else truth
        replay = Replay(recorded, here, clock, np.random.default_rng([seed, number]))
        pairs.append(latency.Pair(f"point {number}", replay.candidate, replay.champion))
    compared = latency.compare(pairs, gate.max_ratio, gate.max_ratio_p99, gate.confidence, gate.seconds, clock)
    return latency.judge(compared, recording.name).status, clock.now


def simulate(recording: Recording, truth: Truth, points: int, promotions: int, gate: latency.Latency) -> Outcome:
    """Lets the gate judge many times; see :func:`promote`."""
    found = [promote(recording, truth, points, gate, seed) for seed in range(promotions)]
    passed = sum(status == "passed" for status, _ in found)
    return Outcome(passed, promotions - passed, tuple(seconds for _, seconds in found))


def table(recordings: Sequence[Recording], promotions: int, points: Sequence[int], seconds: float) -> Iterator[str]:
    """Yields lines of Markdown, as they are found."""
    gate = latency.Latency(seconds=seconds)
    yield f"The gate's defaults, {seconds:g} s at the most; {promotions} promotions each."
    for recording in recordings:
        yield f"\n{recording.name}; recorded of each build: " + "; ".join(_described(t) for t in recording.points)
        yield "\n| points | the candidate is | promoted | refused | seconds, median | longest |"
        yield "|---|---|---|---|---|---|"
        for count in points:
            for truth in TRUTHS:
                found = simulate(recording, truth, count, promotions, gate)
                took = f"{np.median(found.seconds):.1f} | {max(found.seconds):.1f}"
                yield f"| {count} | {truth.name} | {found.promoted} | {found.refused} | {took} |"


def _described(timed: latency.Timed) -> str:
    ratios = [np.quantile(timed.candidate, q) / np.quantile(timed.champion, q) for q in (0.5, 0.99)]
    p50, p99 = np.quantile(timed.champion, (0.5, 0.99)) * 1e3
    return (
        f"{timed.label}: {timed.champion.size} calls, p50 {p50:.3f} ms, p99 {p99:.3f} ms, "
        f"ratio {ratios[0]:.3f} and {ratios[1]:.3f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_power", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="time two builds of one network")
    recording.add_argument("--out", type=Path, required=True, metavar="FILE")
    recording.add_argument("--model", choices=sorted(context.MODELS), default="mlp")
    recording.add_argument("--seconds", type=float, default=60.0, help="for all points together")
    recording.add_argument("--calls", type=int, default=6000, help="of each build at each point, at the most")
    recording.add_argument("--threads", type=int, default=1, help="of PyTorch, where there is no GPU")
    simulating = commands.add_parser("simulate", help="print how often the gate promotes and refuses")
    simulating.add_argument("files", type=Path, nargs="+", metavar="FILE")
    simulating.add_argument("--promotions", type=int, default=100)
    simulating.add_argument("--points", type=int, nargs="+", default=[3, 10])
    simulating.add_argument("--seconds", type=float, default=60.0, help="the gate's bound")
    options = parser.parse_args(arguments)
    if options.command == "record":
        with tempfile.TemporaryDirectory(prefix="mlflow-trt-gate-") as work:
            found = record(options.model, options.seconds, options.calls, Path(work), options.threads)
        options.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        print(f"Written to {options.out}", file=sys.stderr)
        return 0
    for line in table([read(path) for path in options.files], options.promotions, options.points, options.seconds):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
