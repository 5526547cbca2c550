"""How sure a ratio of latencies is: with samples whose truth is known, and with two engines that differ in speed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlflow_trt.registry import latency
from mlflow_trt.registry.statistics import Interval, decide, ratio_interval, shared_confidence


def samples(scale=1.0, rounds=200, seed=0, jitter=0.05):
    draws = np.random.default_rng(seed)
    return 1e-3 * scale * (1 + jitter * draws.gamma(2.0, 1.0, (rounds, 4)))


@pytest.mark.parametrize("quantile", [0.5, 0.99])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_and_is_narrow(quantile, scale):
    found = ratio_interval(samples(scale, seed=1), samples(seed=2), quantile)

    assert found.low <= scale <= found.high
    assert found.low < found.ratio < found.high
    assert found.high - found.low < 0.12


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    """Of 200 experiments with a confidence of 90 %, about 180; fewer than 160 would be a fault of one in 10^10."""
    held = 0
    for seed in range(200):
        pair = samples(1.1, 60, seed=2 * seed), samples(1.0, 60, seed=2 * seed + 1)
        found = ratio_interval(*pair, 0.5, confidence=0.9, resamples=300)
        held += found.low <= 1.1 <= found.high

    assert 160 <= held <= 199


def test_more_rounds_and_less_confidence_make_it_narrower():
    def width(rounds, confidence):
        found = ratio_interval(
            samples(rounds=rounds, seed=1), samples(rounds=rounds, seed=2), 0.5, confidence=confidence
        )
        return found.high - found.low

    assert width(800, 0.95) < width(50, 0.95)
    assert width(200, 0.8) < width(200, 0.99)


def test_a_clock_that_drifts_for_both_does_not_blur_the_ratio():
    """Rounds are drawn as pairs: a GPU that slows to half its speed in the middle slows both."""
    slower = np.where(np.arange(200) < 100, 1.0, 2.0)[:, None]
    one, other = samples(1.2, seed=1, jitter=0.01) * slower, samples(seed=2, jitter=0.01) * slower

    found = ratio_interval(one, other, 0.99)

    assert found.high - found.low < 0.1
    assert found.low < 1.2 < found.high


def test_the_same_samples_give_the_same_interval():
    assert ratio_interval(samples(), samples(seed=1), 0.5) == ratio_interval(samples(), samples(seed=1), 0.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.9, 1.0, "passed"), (1.0, 1.05, "passed"), (1.0, 1.06, "undecided"), (1.06, 1.2, "failed")],
)
def test_an_interval_is_decided_by_where_it_lies(low, high, expected):
    assert decide(Interval(low, (low + high) / 2, high), 1.05) == expected


def test_confidence_is_shared_by_all_intervals_and_looks():
    assert shared_confidence(0.95, 1) == pytest.approx(0.95)
    assert shared_confidence(0.95, 10) == pytest.approx(0.995)


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
    return latency.judge(found, 1.05, arguments.get("max_ratio_p99"), "a GPU"), clock


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


def test_what_stays_undecided_is_not_measured():
    verdict, clock = compared(1.05, seconds=2.0, jitter=0.3)

    assert verdict.status == "not_measured"
    assert verdict.blocks
    assert "Undecided" in verdict.reasons[0]
    assert clock.now < 12.0, "it ends, by its own clock"


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
