"""Which dimensions of a model's inputs are one and which are apart, and what they are called.

Three say so, the first of them that does is believed:

* The export proves that sizes are equal: they have one symbol, or that one follows from others: it is an expression.
* The caller named dimensions, in an Input or by ``torch.export.Dim``: equal names are one dimension, others are apart.
* Nobody: then first dimensions of equal ranges are one batch. Nothing in the program of a transformer ties the rows of
  an attention mask to those of the tokens, since a mask's rows are looked up by index, and still there is only one
  batch. Not so where the program itself holds them apart: two of them are separate dimensions of one tensor (a matrix
  of similarities), or stand in one expression (rows put one below the other).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch.export import ExportedProgram

from .._torch import pytree
from ..errors import InputError, SettingError
from ..inputs import is_dimension_name
from ..plan.manifest import Dimension
from ..plan.signature import equal_sizes
from .arguments import Spec
from .program import placeholder_values
from .shapes import fixed_size, guards, sources

_logger = logging.getLogger(__name__)

Ranges = tuple[tuple[int, int, int], ...]
"""(min, opt, max) of a dimension in each optimization profile."""


class Symbols:
    """What the export's symbols are called: those of one name are one dimension."""

    def __init__(self, names: Mapping[Any, str]) -> None:
        self._names = dict(names)

    def of(self, size: Any) -> Dimension:
        """A number for a fixed size, an expression in the names for a dynamic one."""
        if (fixed := fixed_size(size)) is not None:
            return fixed
        import sympy  # type: ignore[import-untyped]

        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._names:  # a size that depends on the data
                self._names[symbol] = _free(self._names.values(), "u")
        renamed = expression.xreplace({s: sympy.Symbol(n, integer=True) for s, n in self._names.items()})
        return str(renamed)

    def shape(self, tensor: torch.Tensor) -> tuple[Dimension, ...]:
        """The symbolic shape of a tensor of the program."""
        return tuple(self.of(size) for size in tensor.shape)


@dataclass(frozen=True)
class _Place:
    """A dynamic dimension of an input."""

    input: str
    dim: int
    expression: Any
    """The export's size there."""
    ranges: Ranges
    name: str | None
    """The caller's name for it."""

    def __str__(self) -> str:
        named = f" ({self.name!r})" if self.name else ""
        return f"dimension {self.dim} of {self.input}{named}"


def symbols(program: ExportedProgram, specs: Mapping[str, Spec]) -> Symbols:
    """Decides which dimensions are one, and names them.

    A name is the caller's own, that of the caller's ``torch.export.Dim`` (which torch forgets when it saves a program),
    ``batch``, or ``s0``, ``s1``, … in order.

    Args:
        program: The exported program, which holds for the sizes of these inputs.
        specs: Its inputs.

    Raises:
        SettingError: The caller's names contradict what the export found.
    """
    places = list(_places(program, specs))
    names = _given(places)
    for symbol, name in _dim_names(program, places).items():
        if symbol not in names and name not in names.values():
            names[symbol] = name
    groups = _batches(program, places, names)
    for place in places:
        for symbol in sorted(place.expression.free_symbols, key=str):
            if symbol in names:
                continue
            together = next((group for group in groups if symbol in group), [symbol])
            first = place is places[0] and place.dim == 0 and place.expression.is_Symbol
            known = next((names[s] for s in together if s in names), None)
            name = known or ("batch" if first and "batch" not in names.values() else _free(names.values(), "s"))
            names.update(dict.fromkeys((s for s in together if s not in names), name))
    return Symbols(names)


def refuse_unequal(shapes: Mapping[str, Sequence[Dimension]], sizes: Mapping[str, Sequence[int]], what: str) -> None:
    """Refuses the caller's own values where dimensions that are one differ in size.

    Args:
        shapes: The symbolic shape of every input.
        sizes: The shape of each value.
        what: What the values are, for the message.

    Raises:
        SettingError: They differ; names both inputs.
    """
    try:
        equal_sizes((name, sizes[name], shape) for name, shape in shapes.items() if len(sizes[name]) == len(shape))
    except InputError as error:
        raise SettingError(f"{what}: {error.found}", error.expected, error.remedy) from error


def _places(program: ExportedProgram, specs: Mapping[str, Spec]) -> Iterator[_Place]:
    values = placeholder_values(program)
    count = max((len(spec.ranges) for spec in specs.values()), default=1)
    for name, spec in specs.items():
        for dim, size in enumerate(values[name].shape):
            if fixed_size(size) is None:
                ranges = tuple((r.min[dim], r.opt[dim], r.max[dim]) for r in map(spec.range, range(count)))
                yield _Place(name, dim, size.node.expr, ranges, spec.symbols.get(dim))


def _given(places: Iterable[_Place]) -> dict[Any, str]:
    """The caller's names, against the export's findings."""
    named: dict[Any, _Place] = {}
    for place in places:
        if place.name is None:
            continue
        if not place.expression.is_Symbol:
            raise SettingError(
                f"The {place} has a name of its own, and its size follows from others: it is {place.expression} in "
                "the exported program.",
                "names for sizes that may be chosen",
                "leave this name out",
            )
        other = named.setdefault(place.expression, place)
        if other.name != place.name:
            raise SettingError(
                f"The {other} and the {place} have different names, and the exported program holds only where their "
                "sizes are equal.",
                "one name for sizes that must be equal",
                "give both the same name, or change the model",
            )
    return {symbol: str(place.name) for symbol, place in named.items()}


def _dim_names(program: ExportedProgram, places: Iterable[_Place]) -> dict[Any, str]:
    """The names of the caller's torch.export.Dim objects, as long as the program was not saved since."""
    names: dict[Any, str] = {}
    where = sources(program)
    for place in places:
        environment = getattr(placeholder_values(program)[place.input].shape[place.dim].node, "shape_env", None)
        known = getattr(environment, "source_name_to_debug_name", None) or {}
        name = known.get(f"{where.get(place.input)}.size()[{place.dim}]")
        if name and place.expression.is_Symbol and is_dimension_name(name) and name not in names.values():
            names.setdefault(place.expression, name)
    return names


def _batches(program: ExportedProgram, places: Sequence[_Place], names: Mapping[Any, str]) -> list[list[Any]]:
    """The symbols of first dimensions that are one batch.

    They are those of equal ranges that are held apart from the same others. Where tokens and images are held apart by a
    matrix of similarities, nothing says to which of the two batches a mask belongs, which is held apart from neither.
    """
    first = [place for place in places if place.dim == 0 and place.expression.is_Symbol]
    unit = {place.expression: names.get(place.expression, place.expression) for place in first}
    ranges: dict[Any, set[Ranges]] = {}
    for place in first:
        ranges.setdefault(unit[place.expression], set()).add(place.ranges)
    apart: dict[Any, set[Any]] = {one: set() for one in ranges}
    named = set(names.values())
    unlike = (pair for pair in combinations(ranges, 2) if set(pair) <= named)
    held = ((unit[a], unit[b]) for a, b in _held_apart(program, first))
    for one, other in (*unlike, *held):
        if one != other and ranges[one] == ranges[other]:
            apart[one].add(other)
            apart[other].add(one)
    groups: dict[Any, list[Any]] = {}
    told: dict[Any, list[str]] = {}
    for place in first:
        one = unit[place.expression]
        key = (frozenset(ranges[one]), frozenset(apart[one]))
        group = groups.setdefault(key, [])
        if place.expression not in group:
            group.append(place.expression)
            told.setdefault(key, []).append(place.input)
    for key, inputs in told.items():
        if len({unit[symbol] for symbol in groups[key]}) > 1:
            _logger.info(
                "The first dimensions of %s are taken for one batch, since their ranges are equal; different names for "
                "them in their Inputs keep them apart.",
                " and ".join(inputs),
            )
    return list(groups.values())


def _held_apart(program: ExportedProgram, first: Sequence[_Place]) -> Iterator[tuple[Any, Any]]:
    """Pairs of symbols that stand in one tensor's shape, one expression or one condition."""
    wanted = {place.expression for place in first}
    if len(wanted) < 2:
        return
    seen: set[frozenset[Any]] = set()
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for value in pytree.tree_leaves(node.meta.get("val")):
                sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
                symbols = [s.node.expr.free_symbols for s in sizes if isinstance(s, (torch.SymInt, torch.SymFloat))]
                seen.add(frozenset(wanted.intersection(*[set().union(*symbols)])))
    where = sources(program)
    for guard in guards(program):
        seen.add(frozenset(p.expression for p in first if f"{where.get(p.input)}.size()[{p.dim}]" in guard))
    for together in seen:
        yield from combinations(sorted(together, key=str), 2)


def _free(taken: Iterable[str], letter: str) -> str:
    used = set(taken)
    return next(name for n in range(len(used) + 1) if (name := f"{letter}{n}") not in used)
