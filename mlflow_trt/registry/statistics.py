"""How much slower one engine is than another, and how sure that is. Pure functions of timed calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Decision = Literal["passed", "failed", "undecided"]

_BLOCK_ELEMENTS = 4_000_000
"""Numbers that are resampled at once: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a ratio."""

    low: float
    ratio: float
    """Of the samples as they are."""
    high: float


def ratio_interval(
    candidate: np.ndarray,
    champion: np.ndarray,
    quantile: float,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of the ratio of two engines' latency quantiles.

    Whole rounds are drawn with replacement, one draw for both engines: calls of one round ran within the same
    milliseconds, so that a clock that changes, or a neighbour on the machine, is in both or in neither.

    Args:
        candidate: Times of calls, shape (rounds, calls in a round), in any unit.
        champion: The same rounds of the other engine.
        quantile: 0.5 for the median, 0.99 for p99.
        confidence: Of the interval.
        resamples: How many; default: enough that ten lie outside on either side, 1,000 to 10,000.
        seed: Of the draws.

    Returns:
        The interval by percentiles of the resampled ratios.
    """
    tail = (1.0 - confidence) / 2.0
    if resamples is None:
        resamples = int(np.clip(10.0 / max(tail, 1e-9), 1_000, 10_000))
    rounds = len(candidate)
    draws = np.random.default_rng(seed)
    ratios: list[np.ndarray] = []
    block = max(1, _BLOCK_ELEMENTS // max(candidate.size, 1))
    for start in range(0, resamples, block):
        chosen = draws.integers(0, rounds, (min(block, resamples - start), rounds))
        ratios.append(_quantile(candidate[chosen], quantile) / _quantile(champion[chosen], quantile))
    low, high = np.quantile(np.concatenate(ratios), (tail, 1.0 - tail))
    ratio = float(np.quantile(candidate, quantile) / np.quantile(champion, quantile))
    return Interval(float(low), ratio, float(high))


def decide(interval: Interval, allowed: float) -> Decision:
    """Failed if the interval lies above the allowed ratio, passed if below, undecided in between.

    Args:
        interval: Of candidate over champion.
        allowed: 1.05: five percent slower at the most.
    """
    if interval.low > allowed:
        return "failed"
    return "passed" if interval.high <= allowed else "undecided"


def shared_confidence(overall: float, comparisons: int) -> float:
    """The confidence of each of several intervals that all hold at once with the overall one (Bonferroni)."""
    return 1.0 - (1.0 - overall) / max(comparisons, 1)


def _quantile(samples: np.ndarray, quantile: float) -> np.ndarray:
    """Of each resample, over its rounds and calls: interpolated as numpy does, without sorting everything."""
    flat = samples.reshape(len(samples), -1)
    position = quantile * (flat.shape[1] - 1)
    below = int(position)
    above = min(below + 1, flat.shape[1] - 1)
    flat = np.partition(flat, (below, above), axis=1)
    weight = position - below
    return np.asarray(flat[:, below] * (1.0 - weight) + flat[:, above] * weight)
