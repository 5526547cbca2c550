"""The latency gate: candidate and champion on this machine's GPU, call by call in turn, in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .. import measure, plan
from ..errors import InputError
from ..manifest import Manifest
from ..runtime import compatibility, host
from ..runtime.interface import Binder
from .case import Case, Subject
from .statistics import Decision, Interval, decide, ratio_interval, shared_confidence
from .verdicts import Chart, Mark, Status, Table, Verdict

LOOKS = 5
"""How often the intervals may be looked at: each look is one more chance to be wrong, and is paid for in confidence."""
CALLS = 4
"""Calls of each engine in one round."""
_FEWEST_ROUNDS = 50
_MOST_ROUNDS = 250
"""At the first look; the last has 16 times as many, where resampling begins to take longer than measuring."""
_QUANTILES = (("p50", 0.5), ("p99", 0.99))


@dataclass(frozen=True)
class Timed:
    """Calls of both engines at one profile point."""

    label: str
    """``"profile 0 opt"``, of the champion."""
    candidate: np.ndarray
    """Seconds, shape (rounds, calls in a round)."""
    champion: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """One quantile at one point."""

    label: str
    quantile: str
    interval: Interval
    candidate_ms: float
    champion_ms: float
    decision: Decision


@dataclass(frozen=True)
class Latency:
    """The version is not slower than the present champion: p50 and p99 at every profile point of the champion.

    Passed when the confidence interval of every ratio lies below the allowed one, failed when one lies above. In
    between it is undecided, and more is measured, each time as much as all before; undecided to the end, it is
    "not measured".
    """

    max_ratio: float = 1.05
    max_ratio_p99: float | None = None
    """None: as ``max_ratio``. The 99th percentile needs far more calls to be decided."""
    confidence: float = 0.95
    """Of all intervals together."""
    seconds: float = 60.0
    """The longest time to measure, over all points, beside warming up."""
    device: int = 0
    backend: Literal["tensorrt", "reference"] = "tensorrt"
    """``"reference"`` times PyTorch on the CPU, which tells nothing of the engines: to try the gate out."""
    allow_not_measured: bool = False

    name = "latency"

    def __call__(self, case: Case) -> Verdict:
        """Loads both, measures, judges."""
        if case.champion is None:
            return Verdict(self.name, "passed", (f"Nobody holds {case.alias}: there is nothing to be slower than.",))
        if case.champion.model is None:
            why = f"{case.champion.uri} was logged by another flavor; compare the two with a gate of your own."
            return Verdict(self.name, "not_measured", (why,))
        if self.backend == "tensorrt" and (missing := self._not_here(case.candidate, case.champion)):
            return Verdict(self.name, "not_measured", (missing,))
        with (
            case.candidate.load(device=self.device, backend=self.backend) as candidate,
            case.champion.load(device=self.device, backend=self.backend) as champion,
        ):
            pairs = list(_pairs(candidate, champion, case.champion))
            compared = compare(pairs, self.max_ratio, self.max_ratio_p99, self.confidence, self.seconds)
        where = "PyTorch on the CPU" if self.backend == "reference" else host.probe(self.device).gpu
        return judge(compared, self.max_ratio, self.max_ratio_p99, str(where))

    def _not_here(self, *subjects: Subject) -> str | None:
        here = host.probe(self.device)
        if here.gpu is None:
            return "There is no GPU here: run it on a GPU host, or allow this gate not to be measured."
        for subject in subjects:
            report = compatibility.check_all(subject.manifest, here)
            if report.accepted is None:
                return f"{subject.uri} does not load on this GPU host.\n{report.explain()}"
        return None


@dataclass(frozen=True)
class Pair:
    """The same call of both engines."""

    label: str
    candidate: Callable[[], object]
    champion: Callable[[], object]


def compare(
    pairs: Sequence[Pair],
    max_ratio: float,
    max_ratio_p99: float | None = None,
    confidence: float = 0.95,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Comparison]:
    """Times calls in turn until every ratio is decided, or the time is over.

    Args:
        pairs: One for each point.
        max_ratio: Of the medians.
        max_ratio_p99: Of the 99th percentiles; None: the same.
        confidence: Of all intervals together.
        seconds: The longest time to measure.
        clock: Seconds.

    Returns:
        p50 and p99 of every point.
    """
    each = shared_confidence(confidence, len(pairs) * len(_QUANTILES) * LOOKS)
    rounds = {pair.label: _warm_up(pair, clock, seconds / len(pairs)) for pair in pairs}
    begin = clock()
    timed: dict[str, Timed] = {}
    compared: dict[str, list[Comparison]] = {}
    for look in range(LOOKS):
        for pair in pairs:
            if look and all(c.decision != "undecided" for c in compared[pair.label]):
                continue
            # As many as all before: five looks, and the last sees sixteen times what the first did.
            count = rounds[pair.label] * (2 ** max(look - 1, 0))
            timed[pair.label] = _joined(timed.get(pair.label), time_in_turn(pair, count, clock))
            compared[pair.label] = compare_samples(timed[pair.label], max_ratio, max_ratio_p99, each)
        found = [c for comparisons in compared.values() for c in comparisons]
        # One that failed decides for all.
        if any(c.decision == "failed" for c in found) or all(c.decision == "passed" for c in found):
            break
        if clock() - begin > seconds:
            break
    return found


def compare_samples(
    timed: Timed, max_ratio: float, max_ratio_p99: float | None = None, confidence: float = 0.95
) -> list[Comparison]:
    """Compares the quantiles of two engines' calls at one point.

    Args:
        timed: The calls.
        max_ratio: Of the medians.
        max_ratio_p99: Of the 99th percentiles; None: the same.
        confidence: Of each interval.
    """
    found = []
    for name, quantile in _QUANTILES:
        interval = ratio_interval(timed.candidate, timed.champion, quantile, confidence=confidence)
        allowed = max_ratio_p99 if name == "p99" and max_ratio_p99 is not None else max_ratio
        found.append(
            Comparison(
                timed.label,
                name,
                interval,
                float(np.quantile(timed.candidate, quantile)) * 1e3,
                float(np.quantile(timed.champion, quantile)) * 1e3,
                decide(interval, allowed),
            )
        )
    return found


def time_in_turn(pair: Pair, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Timed:
    """Times calls of two engines in turn, within a round champion, candidate, candidate, champion, and so on.

    Args:
        pair: What to call.
        rounds: How many.
        clock: Seconds.
    """
    times: dict[bool, list[list[float]]] = {True: [], False: []}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on one of the two
    try:
        for _ in range(rounds):
            taken: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(CALLS):
                for candidates_turn in (False, True) if turn % 2 == 0 else (True, False):
                    call = pair.candidate if candidates_turn else pair.champion
                    start = clock()
                    call()
                    taken[candidates_turn].append(clock() - start)
            times[True].append(taken[True])
            times[False].append(taken[False])
    finally:
        if collecting:
            gc.enable()
    return Timed(pair.label, np.array(times[True]), np.array(times[False]))


def judge(compared: Sequence[Comparison], max_ratio: float, max_ratio_p99: float | None, where: str) -> Verdict:
    """Failed if one ratio is above what is allowed, passed if all are below, else not measured: undecided.

    Args:
        compared: p50 and p99 of every point.
        max_ratio: Of the medians.
        max_ratio_p99: Of the 99th percentiles; None: the same.
        where: The GPU.
    """
    rows, marks = [], []
    said: dict[Decision, list[str]] = {"passed": [], "failed": [], "undecided": []}
    for c in compared:
        allowed = max_ratio_p99 if c.quantile == "p99" and max_ratio_p99 is not None else max_ratio
        between = f"{c.interval.low:.3f} to {c.interval.high:.3f}"
        text = f"{c.label}, {c.quantile}: {c.interval.ratio:.3f} times the champion's ({between}), allowed {allowed:g}"
        said[c.decision].append(text)
        ms = (f"{c.champion_ms:.3f}", f"{c.candidate_ms:.3f}")
        rows.append((c.label, c.quantile, *ms, f"{c.interval.ratio:.3f}", between, c.decision))
        marks.append(
            Mark(f"{c.label}, {c.quantile}", c.interval.low, c.interval.ratio, c.interval.high, c.decision == "passed")
        )
    columns = ("point", "quantile", "champion ms", "candidate ms", "ratio", "interval", "decision")
    table = Table(f"Latency on {where}", columns, tuple(rows))
    chart = Chart("Latency, candidate over champion", "ratio", tuple(marks), max_ratio)
    status: Status = "failed" if said["failed"] else "not_measured" if said["undecided"] else "passed"
    reasons = said["failed"] or [f"Undecided: {text}; measure longer (seconds=)." for text in said["undecided"]]
    if not reasons:
        worst = max(compared, key=lambda c: c.interval.high)
        reasons = [
            f"At worst {worst.interval.ratio:.3f} times the champion's ({worst.label}, {worst.quantile}), {where}."
        ]
    figures: dict[str, Any] = {
        "where": where,
        "comparisons": [
            {
                "point": c.label,
                "quantile": c.quantile,
                "candidate_ms": c.candidate_ms,
                "champion_ms": c.champion_ms,
                "ratio": c.interval.ratio,
                "low": c.interval.low,
                "high": c.interval.high,
                "decision": c.decision,
            }
            for c in compared
        ],
    }
    return Verdict("latency", status, tuple(reasons), (table,), (chart,), figures=figures)


def _warm_up(pair: Pair, clock: Callable[[], float], share: float) -> int:
    """Calls both until kernels are compiled and graphs recorded; returns the rounds of the first look."""
    fastest = float("inf")
    begin = clock()
    for _ in range(measure.WARM_UP):
        start = clock()
        pair.champion()
        pair.candidate()
        fastest = min(fastest, clock() - start)
        if clock() - begin > 10.0:
            break
    all_looks = share / max(fastest * CALLS, 1e-9)
    # A p99 of few calls is their maximum: no fewer than 50 rounds, unless the model is slow.
    wanted = max(all_looks / 2 ** (LOOKS - 1), min(_FEWEST_ROUNDS, all_looks), 10)
    return int(min(wanted, _MOST_ROUNDS))


def _joined(before: Timed | None, more: Timed) -> Timed:
    if before is None:
        return more
    return Timed(
        more.label,
        np.concatenate([before.candidate, more.candidate]),
        np.concatenate([before.champion, more.champion]),
    )


def _pairs(candidate: Any, champion: Any, subject: Subject) -> Iterator[Pair]:
    """The champion's profile points, with its golden inputs where it has them."""
    for label, inputs in _points(champion, subject):
        try:
            binder = Binder(candidate.interface, candidate.profiles)
            binder.check(binder.named(inputs))
        except InputError as error:
            raise InputError(
                f"The candidate refuses the champion's inputs at {label}: {error.found}",
                "a candidate that keeps the champion's contract",
                "see the gate of the contract",
            ) from error
        yield Pair(label, _call(candidate, inputs), _call(champion, inputs))


def _points(champion: Any, subject: Subject) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    manifest: Manifest = subject.manifest
    if manifest.golden is not None:
        folder = subject.stored.fetch([manifest.golden.inputs, manifest.golden.outputs])
        for profile, point, inputs, _ in plan.read_golden(folder, manifest.golden).points():
            yield f"profile {profile} {point}", inputs
        return
    for profile, point, inputs in measure.made_up_points(champion.interface, champion.profiles):
        yield f"profile {profile} {point}", inputs


def _call(engine: Any, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: engine.predict(inputs)
