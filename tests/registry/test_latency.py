"""Two engines that differ in speed are timed in turn, and judged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlflow_trt.registry import latency
from mlflow_trt.registry.statistics import Interval


class Clock:
    """Moves only when a call takes its time."""

    def __init__(self, seed=0):
        self.now = 0.0
        self.draws = np.random.default_rng(seed)
        self.calls = itertools.count()

    def call(self, seconds, jitter=0.02):
        def taken():
            next(self.calls)
            self.now += seconds * (1 + jitter * self.draws.gamma(2.0, 1.0))

        return taken

    def __call__(self):
        return self.now


def compared(ratio, seconds=60.0, jitter=0.02, **arguments):
    clock = Clock()
    pair = latency.Pair("profile 0 opt", clock.call(ratio * 1e-3, jitter), clock.call(1e-3, jitter))
    found = latency.compare([pair], 1.05, seconds=seconds, clock=clock, **arguments)
    return latency.judge(found, "a GPU"), clock


def test_an_engine_as_fast_passes():
    verdict, _ = compared(1.0)

    assert verdict.status == "passed"
    assert "a GPU" in verdict.reasons[0]


def test_a_slower_engine_fails_and_the_figures_are_told():
    verdict, _ = compared(1.2)

    assert verdict.status == "failed"
    assert "p50: 1.19" in verdict.reasons[0]
    assert verdict.figures["comparisons"][0]["low"] > 1.05
    assert len(verdict.charts[0].marks) == 2


def test_what_is_near_the_limit_is_measured_longer():
    _, clear = compared(1.3, seconds=4.0)
    near, close = compared(1.045, seconds=4.0, jitter=0.1)

    assert next(close.calls) > 4 * next(clear.calls)
    assert near.status in ("passed", "not_measured", "failed")


def test_a_median_that_may_be_1_2_times_as_slow_stays_undecided():
    verdict, clock = compared(1.15, seconds=0.1, jitter=0.6)

    assert verdict.status == "not_measured"
    assert verdict.blocks
    assert "Undecided" in verdict.reasons[0]
    assert clock.now < 1.0, "it ends, by its own clock"


def test_what_is_not_shown_to_be_slower_passes_at_the_end_and_the_report_says_so():
    verdict, clock = compared(1.04, seconds=1.0, jitter=0.3)

    assert verdict.status == "passed"
    assert clock.now < 1.2
    [said] = [r for r in verdict.reasons if "p50" in r and "when the time was over" in r]
    assert "certainly less than 1.2" in said
    assert "passed at the end" in [row[-1] for row in verdict.tables[0].rows]


@pytest.mark.parametrize(
    ("quantile", "decision", "high", "expected"),
    [
        ("p50", "undecided", 1.19, "passed"),
        ("p50", "undecided", 1.2, "undecided"),
        ("p50", "failed", 1.19, "failed"),
        ("p99", "undecided", 9.0, "passed"),
        ("p99", "failed", 9.0, "failed"),
    ],
)
def test_what_happens_when_the_time_is_over(quantile, decision, high, expected):
    found = latency.Comparison("opt", quantile, Interval(1.0, 1.1, high), 1.1, 1.0, 1.05, decision, 100)

    assert latency.at_the_end(found, 1.05).decision == expected
    assert latency.at_the_end(found, 1.05).at_the_end == (decision != expected)


def test_many_points_end_within_the_same_time():
    clock = Clock()
    pairs = [latency.Pair(str(n), clock.call(1e-3, 0.5), clock.call(1e-3, 0.5)) for n in range(10)]

    found = latency.compare(pairs, 1.0001, seconds=2.0, clock=clock)

    assert clock.now < 3.0
    assert len({c.calls for c in found}) > 1 or len(found) == 20


def test_the_99th_percentile_is_judged_too():
    """Every 25th call of the candidate takes twice as long: the median hides it."""
    clock = Clock()
    turn = itertools.count(1)
    usual, slow = clock.call(1e-3), clock.call(2e-3)
    pair = latency.Pair("opt", lambda: slow() if next(turn) % 25 == 0 else usual(), clock.call(1e-3))

    found = {c.quantile: c for c in latency.compare([pair], 1.05, clock=clock)}

    assert found["p50"].decision != "failed"
    assert found["p99"].decision == "failed"


def test_calls_are_made_in_turn():
    order = []
    pair = latency.Pair("opt", lambda: order.append("b"), lambda: order.append("a"))

    timed = latency.time_in_turn(pair, 2)

    assert "".join(order) == "abbaabba" * 2
    assert timed.candidate.shape == timed.champion.shape == (2, latency.CALLS)


def test_a_slow_model_is_not_measured_for_hours():
    clock = Clock()
    pair = latency.Pair("opt", clock.call(3.0), clock.call(3.0))

    latency.compare([pair], 1.05, seconds=60.0, clock=clock)

    assert clock.now < 15 * 60
