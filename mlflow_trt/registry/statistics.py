"""How much slower one engine is than another, and how sure that is. Pure functions of timed calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

Decision = Literal["passed", "failed", "undecided"]

BLOCKS = 32
"""Into how many blocks calls are divided, at the most."""
FEWEST_BLOCKS = 8
"""Fewer say nothing of how blocks differ."""
_CALLS_OF_A_BLOCK = 100
"""Where there are enough calls: the 99th percentile of fewer is nearly their largest."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a ratio."""

    low: float
    ratio: float
    high: float


@dataclass(frozen=True)
class Tails:
    """How likely an interval's ends may be wrong, each for itself."""

    low: float = 0.025
    """That the true ratio lies below the interval."""
    high: float = 0.025


def ratio_interval(candidate: np.ndarray, champion: np.ndarray, quantile: float, tails: Tails = Tails()) -> Interval:
    """Confidence interval of the ratio of two engines' latency quantiles, from paired blocks.

    The rounds, in the order in which they ran, are divided into 8 to 32 blocks. Each block gives one ratio of the two
    engines' quantiles: its calls ran within the same moments, so that a clock that changes, or a neighbour on the
    machine, is in both or in neither, and calls that follow each other need not be independent, blocks only. The ratio
    is the blocks' geometric mean, the interval Student's t of their logarithms.

    A block of fewer than 100 calls has no 99th percentile of its own; it then gives the ratio of nearly the largest.

    Args:
        candidate: Times of calls, shape (rounds, calls in a round), in any unit.
        champion: The same rounds of the other engine.
        quantile: 0.5 for the median, 0.99 for p99.
        tails: How likely either end may be wrong.

    Returns:
        The interval; unbounded where there are fewer than two rounds.
    """
    rounds, calls = candidate.shape
    count = min(max(rounds * calls // _CALLS_OF_A_BLOCK, FEWEST_BLOCKS), BLOCKS, rounds)
    ends = np.linspace(0, rounds, count + 1).astype(int)
    logs = np.array(
        [
            math.log(np.quantile(candidate[start:end], quantile) / np.quantile(champion[start:end], quantile))
            for start, end in pairwise(ends)
        ]
    )
    ratio = math.exp(logs.mean())
    if count < 2:
        return Interval(0.0, ratio, math.inf)
    error = float(logs.std(ddof=1)) / math.sqrt(count)
    below, above = (student(1.0 - tail, count - 1) * error for tail in (tails.low, tails.high))
    return Interval(ratio * math.exp(-below), ratio, ratio * math.exp(above))


def decide(interval: Interval, allowed: float) -> Decision:
    """Failed if the interval lies above the allowed ratio, passed if below, undecided in between.

    Args:
        interval: Of candidate over champion.
        allowed: 1.05: five percent slower at the most.
    """
    if interval.low > allowed:
        return "failed"
    return "passed" if interval.high <= allowed else "undecided"


def shared_tails(confidence: float, comparisons: int, looks: int) -> Tails:
    """The tails of each of several intervals, so that a promotion is right with the overall confidence.

    One interval above the allowed ratio refuses, so that their lower ends must all hold at once (Bonferroni). To be
    promoted every interval must lie below: for a version that is too slow at one point, that point's alone is wrong.

    Args:
        confidence: Of the whole decision, 0.99.
        comparisons: How many intervals decide together.
        looks: How often each may be looked at.
    """
    tail = (1.0 - confidence) / 2.0 / max(looks, 1)
    return Tails(tail / max(comparisons, 1), tail)


@lru_cache(maxsize=256)
def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: From 0.5 to below 1.
        freedom: Degrees of freedom.
    """
    low, high = 0.0, 1.0
    while _student_inside(high, freedom) < 2 * probability - 1 and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _student_inside(t: float, freedom: int) -> float:
    """The probability of -t to t: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
