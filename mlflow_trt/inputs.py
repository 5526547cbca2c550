"""What the caller says of an input: its dtype and, for every dimension, a size or a (min, opt, max) range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Union

from .errors import SettingError
from .plan.dtypes import STORAGE, WIDER, torch_name

Dimension = Union[int, tuple[int, int, int], tuple[str, int], tuple[str, int, int, int]]

DTYPES = tuple(STORAGE)


@dataclass(frozen=True)
class InputRange:
    """The shapes one input may take within one optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def is_static(self) -> bool:
        return self.min == self.max


class Input:
    """Specifies one input of a model.

    Args:
        shape: One entry per dimension: an ``int`` for a fixed size, or ``(min, opt, max)`` for a range that the engine
            accepts and the size it is tuned for: ``Input(((1, 8, 32), 3, 224, 224))``. A range may have a name before
            it: ``Input((("batch", 1, 8, 32), ("tokens", 8, 64, 128)), "int64")``. Dimensions of one name, of one input
            or of several, always have the same size; dimensions of different names may differ.
        dtype: Element type, as a name (``"float32"``), a numpy dtype or a torch dtype.
        name: The parameter of the model's ``forward`` that this input is for; default: by position.
        profiles: Several shapes instead of one, each an optimization profile of its own, of equal rank:
            ``Input(profiles=[((1, 1, 1), 128), ((2, 16, 64), 128)])``. A dimension's name holds in all of them,
            wherever it stands; there it may be before a size too: ``("batch", 1)``.

    Raises:
        SettingError: A dimension is no size or ordered range, its name is no identifier or does not fit the others,
            profiles differ in rank, or the dtype is unknown.
    """

    def __init__(
        self,
        shape: Sequence[Dimension] | None = None,
        dtype: object = "float32",
        name: str | None = None,
        *,
        profiles: Sequence[Sequence[Dimension]] | None = None,
    ) -> None:
        if (shape is None) == (profiles is None):
            raise SettingError(
                "An Input was given " + ("neither a shape nor profiles." if shape is None else "a shape and profiles."),
                "one of the two",
                "write Input(((1, 8, 32), 3, 224, 224)) or Input(profiles=[..., ...])",
            )
        shapes = [shape] if shape is not None else profiles or []
        parsed = [_parse(s) for s in shapes]
        self.ranges: tuple[InputRange, ...] = tuple(span for span, _ in parsed)
        self.dtype = dtype_name(dtype)
        self.name = name
        ranks = {len(r.min) for r in self.ranges}
        if len(ranks) != 1:
            raise SettingError(
                f"The profiles of an Input have {len(ranks)} different ranks: {sorted(ranks)}.",
                "at least one profile, all of one rank",
                "give every profile one entry per dimension",
            )
        self.dimension_names: tuple[str | None, ...] = _names([names for _, names in parsed])
        """One per dimension; None: it has no name."""
        _check_names(self.dimension_names, self.ranges)

    @property
    def rank(self) -> int:
        return len(self.ranges[0].min)

    @property
    def is_static(self) -> bool:
        """Whether every profile holds one and the same shape."""
        return all(r.is_static and r == self.ranges[0] for r in self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Input) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.ranges, self.dimension_names, self.dtype, self.name

    def __repr__(self) -> str:
        shapes = [tuple(map(_plain, self.dimension_names, r.min, r.opt, r.max)) for r in self.ranges]
        what = repr(shapes[0]) if len(shapes) == 1 else f"profiles={shapes!r}"
        return f"Input({what}, dtype={self.dtype!r}" + (f", name={self.name!r})" if self.name else ")")


def dtype_name(dtype: object) -> str:
    """Returns the plain name of a dtype given as a name, a numpy dtype or a torch dtype.

    Raises:
        SettingError: The dtype is none that an input of an engine can have.
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = name.removeprefix("torch.").removesuffix("_") if isinstance(name, str) else str(name)
    name = torch_name(name)
    if (wide := WIDER.get(name)) is not None:
        raise SettingError(
            f"The dtype {name} is none that an engine takes.",
            f"one of {', '.join(DTYPES)}",
            f"write Input(..., dtype={wide!r}), and give the engine array.astype({wide!r}): no value changes",
        )
    if name not in DTYPES:
        raise SettingError(f"The dtype {dtype!r} is not known.", f"one of {', '.join(DTYPES)}", "choose one of these")
    return name


def is_dimension_name(name: object) -> bool:
    """Whether a dimension may be called so: an identifier of ASCII letters, since names stand in expressions."""
    return isinstance(name, str) and name.isascii() and name.isidentifier()


def _parse(shape: Sequence[Dimension]) -> tuple[InputRange, tuple[str | None, ...]]:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise SettingError(
            f"The shape of an Input is {shape!r}.", "one entry per dimension", "write Input((8,)) for a vector of 8"
        )
    triples, names = [], []
    for position, dimension in enumerate(shape):
        name, triple = _named(dimension)
        if len(triple) != 3 or not 1 <= triple[0] <= triple[1] <= triple[2]:
            raise SettingError(
                f"Dimension {position} of the shape {tuple(shape)!r} is {dimension!r}.",
                "an int of at least 1, or (min, opt, max) with 1 <= min <= opt <= max (TensorRT clamps a minimum of "
                "0); with a name: ('batch', min, opt, max)",
                "correct the dimension",
            )
        if name is not None and not is_dimension_name(name):
            raise SettingError(
                f"Dimension {position} of the shape {tuple(shape)!r} is named {name!r}.",
                "a name of ASCII letters, digits and underscores that begins with no digit",
                "rename the dimension",
            )
        triples.append(triple)
        names.append(name)
    low, opt, high = zip(*triples) if triples else ((), (), ())
    return InputRange(tuple(low), tuple(opt), tuple(high)), tuple(names)


def _named(dimension: object) -> tuple[str | None, tuple[int, ...]]:
    """Its name, and its (min, opt, max) as below."""
    if isinstance(dimension, (tuple, list)) and dimension and isinstance(dimension[0], str):
        sizes = dimension[1:]
        return dimension[0], _triple(sizes[0] if len(sizes) == 1 else sizes)
    return None, _triple(dimension)


def _triple(dimension: object) -> tuple[int, ...]:
    """(min, opt, max); empty if it holds anything but integers. numpy's integers count as such."""
    try:
        if isinstance(dimension, (tuple, list)):
            return tuple(index(n) for n in dimension)
        return (index(dimension),) * 3  # type: ignore[arg-type]
    except TypeError:
        return ()


def _names(profiles: Sequence[Sequence[str | None]]) -> tuple[str | None, ...]:
    """The names of the dimensions, which any of the profiles may give."""
    names: list[str | None] = []
    for position, given in enumerate(zip(*profiles)):
        different = sorted({name for name in given if name is not None})
        if len(different) > 1:
            raise SettingError(
                f"Dimension {position} of an Input is named {' and '.join(map(repr, different))} in its profiles.",
                "one name for a dimension",
                "give it the same name in every profile",
            )
        names.append(different[0] if different else None)
    return tuple(names)


def _check_names(names: Sequence[str | None], ranges: Sequence[InputRange]) -> None:
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if name is None:
            continue
        if len({n for r in ranges for n in (r.min[position], r.max[position])}) == 1:
            raise SettingError(
                f"Dimension {position} of an Input is named {name!r} and always {ranges[0].min[position]}.",
                "names for dynamic dimensions only",
                f"write {ranges[0].min[position]}, or a range: ({name!r}, min, opt, max)",
            )
        other = first.setdefault(name, position)
        for r in ranges:
            if _span(r, other) != _span(r, position):
                raise SettingError(
                    f"Dimensions {other} and {position} of an Input are both named {name!r}, and are "
                    f"{_span(r, other)} and {_span(r, position)}.",
                    "one range for one name: such dimensions always have the same size",
                    "give both the same range, or different names",
                )


def _span(r: InputRange, position: int) -> str:
    return f"{r.min[position]}:{r.opt[position]}:{r.max[position]}"


def _plain(name: str | None, low: int, opt: int, high: int) -> Dimension:
    """A dimension as one would write it."""
    if name is not None:
        return (name, low) if low == high else (name, low, opt, high)
    return low if low == high else (low, opt, high)
