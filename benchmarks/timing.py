"""Timing calls fairly: interleaved, after a warm-up, many of them, and medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Rounds = list[list[float]]
"""Seconds of each timed call, round by round."""


def quantile(samples: Sequence[float], q: float) -> float:
    """Returns the q-quantile with linear interpolation, ``q`` from 0 to 1."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples")
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def flat(rounds: Rounds) -> list[float]:
    """All samples of all rounds."""
    return [sample for one in rounds for sample in one]


def median(rounds: Rounds) -> float:
    """The median of all samples."""
    return statistics.median(flat(rounds))


def ratio(rounds: Rounds, baseline: Rounds) -> float:
    """How many times longer one way takes than another: the median over rounds of the ratio of medians.

    Both ways of a round ran within moments of each other, so a drift of clocks or load cancels out.
    """
    return statistics.median(
        statistics.median(mine) / statistics.median(theirs) for mine, theirs in zip(rounds, baseline, strict=True)
    )


def difference(rounds: Rounds, baseline: Rounds) -> float:
    """How many seconds longer one way takes than another: the median over rounds of the difference of medians."""
    return statistics.median(
        statistics.median(mine) - statistics.median(theirs) for mine, theirs in zip(rounds, baseline, strict=True)
    )


def interleave(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int,
    warm_up: int = 3,
    deadline: float = float("inf"),
) -> dict[str, Rounds]:
    """Times several ways to do a thing in turn.

    Args:
        ways: Name → the call.
        rounds: How often all of them take their turn; the order rotates.
        calls: Timed calls of a turn.
        warm_up: Calls at the begin of a turn that are not timed.
        deadline: ``time.monotonic()`` after which no new round begins; the first one always runs.

    Returns:
        The seconds of each call, by name.
    """
    names = list(ways)
    found: dict[str, Rounds] = {name: [] for name in names}
    clock = time.perf_counter
    gc.collect()
    gc.disable()  # a collection in the middle of a call belongs to none of the ways
    try:
        for turn in range(rounds):
            if turn and time.monotonic() > deadline:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call = ways[name]
                for _ in range(warm_up):
                    call()
                samples = []
                for _ in range(calls):
                    begin = clock()
                    call()
                    samples.append(clock() - begin)
                found[name].append(samples)
    finally:
        gc.enable()
    return found
