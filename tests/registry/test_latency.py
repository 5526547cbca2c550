"""How sure a ratio of latencies is: with samples whose truth is known, and with two engines that differ in speed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlflow_trt.registry import latency
from mlflow_trt.registry.statistics import Interval, Tails, decide, ratio_interval, shared_tails, student


def samples(scale=1.0, rounds=200, seed=0, jitter=0.05):
    draws = np.random.default_rng(seed)
    return 1e-3 * scale * (1 + jitter * draws.gamma(2.0, 1.0, (rounds, 4)))


@pytest.mark.parametrize("quantile", [0.5, 0.99])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_and_is_narrow(quantile, scale):
    found = ratio_interval(samples(scale, seed=1), samples(seed=2), quantile)

    assert found.low <= scale <= found.high
    assert found.low < found.ratio < found.high
    assert found.high - found.low < 0.12 * max(scale, 1)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    """Of 200 experiments with a confidence of 90 %, about 180; fewer than 160 would be a fault of one in 10^10."""
    held = 0
    for seed in range(200):
        pair = samples(1.1, 60, seed=2 * seed), samples(1.0, 60, seed=2 * seed + 1)
        found = ratio_interval(*pair, 0.5, Tails(0.05, 0.05))
        held += found.low <= 1.1 <= found.high

    assert 160 <= held <= 199


def test_more_rounds_and_less_confidence_make_it_narrower():
    def width(rounds, tail):
        found = ratio_interval(samples(rounds=rounds, seed=1), samples(rounds=rounds, seed=2), 0.5, Tails(tail, tail))
        return found.high - found.low

    assert width(800, 0.025) < width(50, 0.025)
    assert width(200, 0.1) < width(200, 0.005)


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


def test_confidence_is_shared_by_looks_and_for_refusals_by_intervals_too():
    assert shared_tails(0.9, 1, 1) == Tails(pytest.approx(0.05), pytest.approx(0.05))
    assert shared_tails(0.9, 20, 5) == Tails(pytest.approx(0.0005), pytest.approx(0.01))


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.706204736),  # scipy.stats.t.ppf
        (0.975, 2, 4.302652730),
        (0.975, 10, 2.228138852),
        (0.995, 7, 3.499483297),
        (0.9995, 31, 3.633456350),
        (0.99999, 8, 8.907026871),
    ],
)
def test_students_distribution(probability, freedom, expected):
    assert student(probability, freedom) == pytest.approx(expected, rel=1e-8)


def test_calls_that_a_neighbour_slows_for_a_while_do_not_look_independent():
    """Every tenth stretch of the candidate alone is slow: a hundred calls of it are one accident and no hundred."""
    draws = np.random.default_rng(3)
    wrong = 0
    for seed in range(100):
        slow = np.repeat(draws.random(40) < 0.3, 25)[:, None]
        pair = samples(rounds=1000, seed=2 * seed) * np.where(slow, 1.5, 1.0), samples(rounds=1000, seed=2 * seed + 1)
        other = samples(rounds=1000, seed=1000 + seed) * np.where(np.roll(slow, 500), 1.5, 1.0)
        found = ratio_interval(pair[0], other, 0.5, Tails(0.005, 0.005))
        wrong += not found.low <= 1.0 <= found.high

    assert wrong <= 6


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
