"""A point of a profile: the sizes at which a model is asked what the engine is to answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Point:
    """Shapes of all inputs, within one profile."""

    profile: int
    name: str
    shapes: Shapes


def between(low: int, opt: int, high: int) -> Iterator[int]:
    """Sizes strictly between, the best first: odd ones of the lower half, where calls are cheap."""
    # A range may be of thousands of millions of sizes: only the first are looked at.
    sizes = list(itertools.islice((n for n in range(low + 1, high) if n != opt), 4096))
    middle = (low + opt) // 2 if opt - low > 1 else (opt + high) // 2
    yield from sorted(sizes, key=lambda n: (n % 2 == 0, abs(n - middle), n))


def shapes_text(point: Point) -> str:
    """``x [4, 6], mask [4]``."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in point.shapes.items())
