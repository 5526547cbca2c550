"""The latency gate: candidate and champion on this machine's GPU, call by call in turn, in one process.

The rule, for p50 and p99 at every profile point of the champion, each with a confidence interval of its ratio:

* **refused** as soon as one interval lies above the allowed ratio: 1.05 for p50, 1.2 for p99;
* **promoted** as soon as all lie below;
* what is undecided is measured longer, up to the time bound (60 s; a slow model's 8 rounds at each point may take
  longer). **At the end** p50 passes where its interval lies below 1.2, and p99 where it has not been shown to be above.

So a version that is as fast is promoted although p99 says nothing within a minute, if the noise lets its median be
shown to be below 1.2; where it does not, it is refused as undecided. One that is 1.2 times as slow is refused
whatever the noise, for its median would have to be shown to be below. What lies between 1.05 and 1.2 is refused where
the machine is quiet enough to show it. ``python -m benchmarks.gate_power`` prints how often each happens, with the
noise of recorded calls.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .. import store
from ..errors import InputError
from ..evidence import measure
from ..plan import compatibility, host
from ..plan.signature import CallSignature
from .gate_context import GateContext, Subject
from .statistics import FEWEST_BLOCKS, Decision, Interval, Tails, decide, ratio_interval, shared_tails
from .verdicts import Chart, Mark, Status, Table, Verdict

LOOKS = 6
"""How often the intervals may be looked at, each time after twice as long: each look is one more chance to be wrong,
and is paid for in confidence."""
CALLS = 4
"""Calls of each engine in one round."""
TOO_SLOW = 1.2
"""A median that is so many times the champion's is never promoted, nor a p99 that is shown to be above."""
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
    allowed: float
    decision: Decision
    calls: int
    """Of each engine."""
    at_the_end: bool = False
    """Whether it passed because the time was over: not shown to be below what is allowed, nor above."""


@dataclass(frozen=True)
class Latency:
    """The version is not slower than the present champion: p50 and p99 at every profile point of the champion.

    Failed as soon as the confidence interval of one ratio lies above what is allowed, passed as soon as all lie below.
    What is undecided is measured longer; when the time is over a median passes if its interval lies below 1.2, and a
    p99 if it has not been shown to be slower. A median for which that can't be shown is "not measured".
    """

    max_ratio: float = 1.05
    """Of the medians."""
    max_ratio_p99: float | None = None
    """None: 1.2, or ``max_ratio`` where that is more: the 99th percentiles of two builds of one network differ."""
    confidence: float = 0.99
    """Of the whole decision, over all points."""
    seconds: float = 60.0
    """The longest time to measure, over all points, beside warming up; 8 rounds of 4 calls are made at every point."""
    device: int = 0
    backend: Literal["tensorrt", "reference"] = "tensorrt"
    """``"reference"`` times the logged programs on the CPU, which tells nothing of the engines: to try the gate out."""
    allow_not_measured: bool = False

    name = "latency"

    def __call__(self, context: GateContext) -> Verdict:
        """Loads both, measures, judges."""
        if context.champion is None:
            return Verdict(self.name, "passed", (f"Nobody holds {context.alias}: there is nothing to be slower than.",))
        if context.champion.model is None:
            why = f"{context.champion.uri} was logged by another flavor; compare the two with a gate of your own."
            return Verdict(self.name, "not_measured", (why,))
        if self.backend == "tensorrt" and (missing := self._not_here(context.candidate, context.champion)):
            return Verdict(self.name, "not_measured", (missing,))
        with (
            context.candidate.load(device=self.device, backend=self.backend) as candidate,
            context.champion.load(device=self.device, backend=self.backend) as champion,
        ):
            pairs = list(pairs_of(candidate, champion, context.champion.stored))
            if not pairs:
                champion_uri = context.champion.uri
                why = f"{champion_uri} has neither golden inputs nor profiles: there is nothing to call both with."
                return Verdict(self.name, "not_measured", (why,))
            compared = compare(pairs, self.max_ratio, self.max_ratio_p99, self.confidence, self.seconds)
        where = "the logged programs on the CPU" if self.backend == "reference" else host.probe(self.device).gpu
        return judge(compared, str(where))

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
    confidence: float = 0.99,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Comparison]:
    """Times calls in turn until every ratio is decided, or the time is over.

    Args:
        pairs: One for each point.
        max_ratio: Of the medians.
        max_ratio_p99: Of the 99th percentiles; None: 1.2, or ``max_ratio`` where that is more.
        confidence: Of the whole decision.
        seconds: The longest time to measure.
        clock: Seconds.

    Returns:
        p50 and p99 of every point.
    """
    tails = shared_tails(confidence, len(pairs) * len(_QUANTILES), LOOKS)
    allowed = {"p50": max_ratio, "p99": max(TOO_SLOW, max_ratio) if max_ratio_p99 is None else max_ratio_p99}
    for pair in pairs:
        _warm_up(pair, clock)
    begin = clock()
    timed: dict[str, Timed] = {}
    compared: dict[str, list[Comparison]] = {}
    comparisons: list[Comparison] = []
    for look in range(LOOKS):
        until = begin + seconds / 2 ** (LOOKS - 1 - look)
        open_ = [p for p in pairs if any(c.decision == "undecided" for c in compared.get(p.label, [])) or not look]
        if look and clock() >= until:
            continue  # the fewest rounds of a slow model took longer than this look was to
        for place, pair in enumerate(open_):
            end = clock() + (until - clock()) / (len(open_) - place)
            _settle(pair)
            before = timed.get(pair.label)
            fewest = 1 if before is not None else FEWEST_BLOCKS
            timed[pair.label] = _joined(before, time_in_turn(pair, fewest, clock, end))
            compared[pair.label] = compare_samples(timed[pair.label], allowed, tails)
        comparisons = [c for at_a_point in compared.values() for c in at_a_point]
        # One that failed decides for all.
        if any(c.decision == "failed" for c in comparisons) or all(c.decision == "passed" for c in comparisons):
            return comparisons
    return [at_the_end(c, max_ratio) for c in comparisons]


def compare_samples(timed: Timed, allowed: Mapping[str, float], tails: Tails) -> list[Comparison]:
    """Compares the quantiles of two engines' calls at one point.

    Args:
        timed: The calls.
        allowed: The largest ratio of ``"p50"`` and ``"p99"``.
        tails: Of each interval.
    """
    comparisons = []
    for name, quantile in _QUANTILES:
        interval = ratio_interval(timed.candidate, timed.champion, quantile, tails)
        comparisons.append(
            Comparison(
                timed.label,
                name,
                interval,
                float(np.quantile(timed.candidate, quantile)) * 1e3,
                float(np.quantile(timed.champion, quantile)) * 1e3,
                allowed[name],
                decide(interval, allowed[name]),
                timed.candidate.size,
            )
        )
    return comparisons


def at_the_end(compared: Comparison, max_ratio: float) -> Comparison:
    """Decides what is undecided when the time is over: not shown to be too slow, and a median certainly below 1.2."""
    certain = compared.quantile == "p99" or compared.interval.high < max(TOO_SLOW, max_ratio)
    if compared.decision != "undecided" or not certain:
        return compared
    return replace(compared, decision="passed", at_the_end=True)


def time_in_turn(
    pair: Pair, rounds: int, clock: Callable[[], float] = time.perf_counter, until: float = float("-inf")
) -> Timed:
    """Times calls of two engines in turn, within a round champion, candidate, candidate, champion, and so on.

    Args:
        pair: What to call.
        rounds: How many at the least.
        clock: Seconds.
        until: When to stop, by the clock.
    """
    candidate, champion = pair.candidate, pair.champion
    of_candidate: list[float] = []
    of_champion: list[float] = []
    one = ((champion, of_champion), (candidate, of_candidate))
    order = (one + one[::-1]) * (CALLS // 2)
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on one of the two
    try:
        while rounds > 0 or clock() < until:
            rounds -= 1
            for call, times in order:
                start = clock()
                call()
                times.append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return Timed(pair.label, np.array(of_candidate).reshape(-1, CALLS), np.array(of_champion).reshape(-1, CALLS))


def judge(compared: Sequence[Comparison], where: str) -> Verdict:
    """Failed if one ratio is above what is allowed, passed if all pass, else not measured: undecided.

    Args:
        compared: p50 and p99 of every point.
        where: The GPU.
    """
    rows, marks = [], []
    said: dict[Decision, list[str]] = {"passed": [], "failed": [], "undecided": []}
    ends: list[str] = []
    for c in compared:
        between = f"{c.interval.low:.3f} to {c.interval.high:.3f}"
        text = (
            f"{c.label}, {c.quantile}: {c.interval.ratio:.3f} times the champion's ({between}), allowed {c.allowed:g}"
        )
        said[c.decision].append(text)
        if c.at_the_end:
            below = "" if c.quantile == "p99" else f", and certainly less than {max(TOO_SLOW, c.allowed):g}"
            ends.append(f"Not shown to be slower when the time was over{below}: {text}.")
        ms = (f"{c.champion_ms:.3f}", f"{c.candidate_ms:.3f}")
        decision = "passed at the end" if c.at_the_end else c.decision
        rows.append(
            (c.label, c.quantile, str(c.calls), *ms, f"{c.interval.ratio:.3f}", between, f"{c.allowed:g}", decision)
        )
        good = c.decision == "passed"
        marks.append(Mark(f"{c.label}, {c.quantile}", c.interval.low, c.interval.ratio, c.interval.high, good))
    columns = ("point", "quantile", "calls", "champion ms", "candidate ms", "ratio", "interval", "allowed", "decision")
    table = Table(f"Latency on {where}", columns, tuple(rows))
    limit = min(c.allowed for c in compared)
    chart = Chart("Latency, candidate over champion", "ratio", tuple(marks), limit)
    status: Status = "failed" if said["failed"] else "not_measured" if said["undecided"] else "passed"
    reasons = said["failed"] or [f"Undecided: {text}; measure longer (seconds=)." for text in said["undecided"]]
    if not reasons:
        worst = max(compared, key=lambda c: c.interval.high)
        reasons = [
            f"At worst {worst.interval.ratio:.3f} times the champion's ({worst.label}, {worst.quantile}), {where}.",
            *ends,
        ]
    figures: dict[str, Any] = {
        "where": where,
        "comparisons": [
            {
                "point": c.label,
                "quantile": c.quantile,
                "calls": c.calls,
                "candidate_ms": c.candidate_ms,
                "champion_ms": c.champion_ms,
                "ratio": c.interval.ratio,
                "low": c.interval.low,
                "high": c.interval.high,
                "allowed": c.allowed,
                "decision": c.decision,
                "at_the_end": c.at_the_end,
            }
            for c in compared
        ],
    }
    return Verdict("latency", status, tuple(reasons), (table,), (chart,), figures=figures)


def _warm_up(pair: Pair, clock: Callable[[], float]) -> None:
    """Calls both until kernels are compiled and graphs recorded."""
    begin = clock()
    for _ in range(measure.WARM_UP):
        pair.champion()
        pair.candidate()
        if clock() - begin > 10.0:
            break


def _settle(pair: Pair) -> None:
    """Calls both twice: after another point's shapes the first binds these anew, the second records the graph."""
    for _ in range(2):
        pair.champion()
        pair.candidate()


def _joined(before: Timed | None, more: Timed) -> Timed:
    if before is None:
        return more
    return Timed(
        more.label,
        np.concatenate([before.candidate, more.candidate]),
        np.concatenate([before.champion, more.champion]),
    )


def pairs_of(candidate: Any, champion: Any, stored: store.StoredModel) -> Iterator[Pair]:
    """The champion's profile points, with its golden inputs where it has them.

    Args:
        candidate: An engine.
        champion: The one to compare with.
        stored: Where the champion's files are.

    Raises:
        InputError: The candidate refuses the champion's inputs.
    """
    for label, inputs in _points(champion, stored):
        try:
            call_signature = CallSignature(candidate.interface, candidate.profiles)
            call_signature.check(call_signature.named(inputs))
        except InputError as error:
            raise InputError(
                f"The candidate refuses the champion's inputs at {label}: {error.found}",
                "a candidate that keeps the champion's contract",
                "see the gate of the contract",
            ) from error
        yield Pair(label, _call(candidate, inputs), _call(champion, inputs))


def _points(champion: Any, stored: store.StoredModel) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    golden = stored.golden()
    if golden is not None:
        for profile, point, inputs, _ in golden.points():
            yield f"profile {profile} {point}", inputs
        return
    for profile, point, inputs in measure.made_up_points(champion.interface, champion.profiles):
        yield f"profile {profile} {point}", inputs


def _call(engine: Any, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: engine.predict(inputs)
