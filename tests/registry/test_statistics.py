"""How sure a ratio of latencies is: with samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_trt.registry.statistics import Interval, Tails, decide, ratio_interval, shared_tails, student


def samples(scale=1.0, rounds=200, seed=0, jitter=0.05):
    draws = np.random.default_rng(seed)
    return 1e-3 * scale * (1 + jitter * draws.gamma(2.0, 1.0, (rounds, 4)))


@pytest.mark.parametrize("quantile", [0.5, 0.99])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_and_is_narrow(quantile, scale):
    interval = ratio_interval(samples(scale, seed=1), samples(seed=2), quantile)

    assert interval.low <= scale <= interval.high
    assert interval.low < interval.ratio < interval.high
    assert interval.high - interval.low < 0.12 * max(scale, 1)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    """Of 200 experiments with a confidence of 90 %, about 180; fewer than 160 would be a fault of one in 10^10."""
    held = 0
    for seed in range(200):
        pair = samples(1.1, 60, seed=2 * seed), samples(1.0, 60, seed=2 * seed + 1)
        interval = ratio_interval(*pair, 0.5, Tails(0.05, 0.05))
        held += interval.low <= 1.1 <= interval.high

    assert 160 <= held <= 199


def test_more_rounds_and_less_confidence_make_it_narrower():
    def width(rounds, tail):
        interval = ratio_interval(
            samples(rounds=rounds, seed=1), samples(rounds=rounds, seed=2), 0.5, Tails(tail, tail)
        )
        return interval.high - interval.low

    assert width(800, 0.025) < width(50, 0.025)
    assert width(200, 0.1) < width(200, 0.005)


def test_a_clock_that_drifts_for_both_does_not_blur_the_ratio():
    """Rounds are drawn as pairs: a GPU that slows to half its speed in the middle slows both."""
    slower = np.where(np.arange(200) < 100, 1.0, 2.0)[:, None]
    one, other = samples(1.2, seed=1, jitter=0.01) * slower, samples(seed=2, jitter=0.01) * slower

    interval = ratio_interval(one, other, 0.99)

    assert interval.high - interval.low < 0.1
    assert interval.low < 1.2 < interval.high


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
        interval = ratio_interval(pair[0], other, 0.5, Tails(0.005, 0.005))
        wrong += not interval.low <= 1.0 <= interval.high

    assert wrong <= 6
