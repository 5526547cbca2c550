"""The sizes at which a model is tried: min, opt, max, one between, and those that code is likely to treat otherwise.

An export keeps one way through the model's Python code. It says of a few conditions that they must hold (its guards),
and of a size of 1 never: it assumes that a dynamic size is at least 2. So besides the points that are stored, a model
is asked at sizes that break a guard, and with every dynamic size at 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram

from ..plan.files import BETWEEN
from .arguments import Spec
from .points import Point, Shapes, between
from .program import placeholder_values
from .shapes import fixed_size, holds

_MOST_PROBES = 6
"""Probes that a profile may cost: each is one call more."""


def points(program: ExportedProgram, specs: Mapping[str, Spec], requirements: Iterable[str]) -> list[Point]:
    """Opt, min, max and one size between of every profile; one where they are the same.

    Args:
        program: The exported program: its symbols say which sizes go together.
        specs: Its inputs.
        requirements: Its guards, which the sizes between are to keep.
    """
    required = list(requirements)
    points: list[Point] = []
    for profile in range(_profiles(specs)):
        taken: list[Shapes] = []
        for name in ("opt", "min", "max"):
            shapes = {n: tuple(getattr(spec.range(profile), name)) for n, spec in specs.items()}
            if shapes not in taken:
                taken.append(shapes)
                points.append(Point(profile, name, shapes))
        for shapes in _between(_Grid(program, specs, profile)):
            if shapes not in taken and all(holds(text, shapes) for text in required):
                points.append(Point(profile, BETWEEN, shapes))
                break
    return points


def probes(
    program: ExportedProgram, specs: Mapping[str, Spec], requirements: Iterable[str], taken: Sequence[Point]
) -> list[Point]:
    """Further sizes at which the model's code may go another way; at most six of every profile.

    Args:
        program: The exported program.
        specs: Its inputs.
        requirements: Its guards: each is to be broken once.
        taken: Points at which the model is asked in any case.
    """
    required = list(requirements)
    probes: list[Point] = []
    for profile in range(_profiles(specs)):
        grid = _Grid(program, specs, profile)
        known = [p.shapes for p in taken if p.profile == profile]
        for shapes in (*_ones(grid), *_breaking(grid, required, known)):
            if shapes not in known and sum(p.profile == profile for p in probes) < _MOST_PROBES:
                known.append(shapes)
                probes.append(Point(profile, "a size between", shapes))
    return probes


class _Grid:
    """The sizes of one profile, by the export's symbols: dimensions that share one change together."""

    def __init__(self, program: ExportedProgram, specs: Mapping[str, Spec], profile: int) -> None:
        self.specs = specs
        self.profile = profile
        values = placeholder_values(program)
        self.expressions: dict[str, list[Any]] = {
            name: [n if (n := fixed_size(size)) is not None else size.node.expr for size in values[name].shape]
            for name in specs
        }
        self.opt: dict[Any, int] = {}
        self.bounds: dict[Any, tuple[int, int]] = {}
        for name, expressions in self.expressions.items():
            r = specs[name].range(profile)
            for expression, *sizes in zip(expressions, r.min, r.opt, r.max):
                self._bound(expression, *sizes)

    def _bound(self, expression: Any, low: int, opt: int, high: int) -> None:
        """Narrows the bounds of a symbol by a dimension of the form ``a·symbol + b``."""
        symbols: list[Any] = list(getattr(expression, "free_symbols", ()))
        if len(symbols) != 1:
            return
        symbol = symbols[0]
        at_zero, at_one = (int(expression.subs(symbol, n)) for n in (0, 1))
        slope = at_one - at_zero
        if slope < 1 or int(expression.subs(symbol, 2)) != at_one + slope:
            return
        bounds = (-(-(low - at_zero) // slope), (high - at_zero) // slope)
        before = self.bounds.get(symbol, bounds)
        self.bounds[symbol] = (max(before[0], bounds[0]), min(before[1], bounds[1]))
        self.opt.setdefault(symbol, (opt - at_zero) // slope)

    @property
    def dynamic(self) -> list[Any]:
        """Symbols with more than one size."""
        return [symbol for symbol, (low, high) in self.bounds.items() if low < high]

    def shapes(self, changes: Mapping[Any, int]) -> Shapes | None:
        """The shapes with these sizes, and opt for all other symbols; None: they leave the profile."""
        sizes = {**self.opt, **changes}
        shapes: Shapes = {}
        for name, expressions in self.expressions.items():
            shape = []
            for e in expressions:
                value = e if isinstance(e, int) else sizes[e] if e in sizes else e.subs(sizes)
                if not isinstance(value, int):
                    if not value.is_Integer:
                        return None
                    value = int(value)
                shape.append(value)
            r = self.specs[name].range(self.profile)
            if not all(low <= n <= high for low, n, high in zip(r.min, shape, r.max)):
                return None
            shapes[name] = tuple(shape)
        return shapes


def _profiles(specs: Mapping[str, Spec]) -> int:
    return max((len(spec.ranges) for spec in specs.values()), default=1)


def _between(grid: _Grid) -> Iterator[Shapes]:
    """All symbols between their ends at once; then one alone, since they may be bound to each other."""
    candidates = {s: between(grid.bounds[s][0], grid.opt[s], grid.bounds[s][1]) for s in grid.dynamic}
    first = {symbol: size for symbol, sizes in candidates.items() if (size := next(sizes, None)) is not None}
    tries: list[Mapping[Any, int]] = [first] if first else []
    yield from _within(grid, tries)
    for symbol, sizes in candidates.items():
        yield from _within(grid, ({symbol: size} for size in sizes))


def _ones(grid: _Grid) -> Iterator[Shapes]:
    """Every symbol at 1 alone: a batch of one long sequence, a batch of sequences of one token."""
    if len(grid.dynamic) > 1:
        yield from _within(grid, ({s: 1} for s in grid.dynamic if grid.bounds[s][0] <= 1))


def _breaking(grid: _Grid, required: Iterable[str], known: Sequence[Shapes]) -> Iterator[Shapes]:
    for text in required:
        if any(not holds(text, shapes) for shapes in known):
            continue
        # 1 last: it is tried in any case, and may be treated in a way of its own.
        sizes = {s: sorted(_telling(text, *grid.bounds[s]), key=lambda n: n == 1) for s in grid.dynamic}
        changes = ({s: size} for s in grid.dynamic for size in sizes[s])
        broken = _first(_within(grid, changes), lambda shapes, text=text: not holds(text, shapes))  # type: ignore[misc]
        if broken is not None:
            yield broken


def _telling(text: str, low: int, high: int) -> list[int]:
    """Sizes to try against a guard: all of a small range; of a large one its ends, and what the guard's numbers say."""
    if high - low < 256:
        return list(range(low, high + 1))
    numbers = {int(n) + d for n in re.findall(r"\d+", text) for d in (-1, 0, 1)}
    spaced = {low + (high - low) * i // 64 + d for i in range(65) for d in (0, 1)}
    return sorted(n for n in {*range(low, low + 64), *numbers, *spaced} if low <= n <= high)


def _within(grid: _Grid, changes: Iterable[Mapping[Any, int]]) -> Iterator[Shapes]:
    return (shapes for change in changes if (shapes := grid.shapes(change)) is not None)


def _first(candidates: Iterable[Shapes], wanted: Callable[[Shapes], bool]) -> Shapes | None:
    return next((shapes for shapes in candidates if wanted(shapes)), None)
