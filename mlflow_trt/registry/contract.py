"""Whether what clients send to one version is accepted by another, and answered in the same form.

A pure function of two manifests. Shapes are compared as sets. What an engine accepts is a union of boxes, one for each
optimization profile, with an axis for each size that a caller chooses: a symbol of the interface ("batch"), or a
dimension of its own. Two profiles of the new version may cover one of the old, and the other way round. Sizes of
outputs are compared by their values, over the calls that the old version accepts. What a symbol is called does not
matter anywhere.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence

from ..plan.files import folder_name
from ..plan.manifest import Branch, ConstantLeaf, Dimension, Interface, Manifest, Profile, Structure, Tensor
from . import sizes
from .sizes import Place
from .verdicts import Table

Axis = tuple[Place, ...]
"""The dimensions that always have the same size: ``(("x", 0), ("mask", 0))``."""
Box = dict[Axis, tuple[int, int]]

_ANY = 2**31 - 1
"""The largest size that TensorRT has."""
_CALLS = 64
"""Of how many calls of each profile, beside the smallest and the largest, outputs' sizes are compared."""


def problems(old: Manifest, new: Manifest) -> list[str]:
    """What clients of one version would run into with another.

    Args:
        old: What clients use now.
        new: What would take its place.

    Returns:
        One sentence for each; empty if every call that ``old`` accepts is accepted by ``new``, and answered with
        outputs of the same names, dtypes, sizes and structure.
    """
    assert old.interface is not None
    assert new.interface is not None
    broken = [
        *_tensor_problems("input", old.interface.inputs, new.interface.inputs),
        *_tensor_problems("output", old.interface.outputs, new.interface.outputs),
    ]
    known = {t.name for t in old.interface.inputs}
    broken += [
        f"The input {t.name!r} is new: clients do not send it." for t in new.interface.inputs if t.name not in known
    ]
    if broken:
        return broken
    before, after = ([t.name for t in i.outputs] for i in (old.interface, new.interface))
    if after[: len(before)] != before:
        broken.append(
            f"Outputs come in another order, {', '.join(after)}, and came as {', '.join(before)}: clients that read "
            "them by their place would take one for another."
        )
    if old.interface.arguments != new.interface.arguments:
        broken.append("Arguments nest otherwise or come in another order: native calls (engine(x, …)) would fail.")
    broken += _result_problems(old.interface.result, new.interface.result, "result")
    return list(dict.fromkeys([*broken, *_shape_problems(old, new)]))


def notes(old: Manifest, new: Manifest) -> list[str]:
    """Differences that break no call but that a client may want to know."""
    assert old.interface is not None
    assert new.interface is not None
    known = {t.name for t in old.interface.outputs}
    extra = [t.name for t in new.interface.outputs if t.name not in known]
    return [f"There are new outputs: {', '.join(extra)}."] if extra else []


def unknown(manifest: Manifest) -> str | None:
    """Why a version has no contract on record; None if it has one."""
    if manifest.interface is None or any(p.profiles is None for p in manifest.plans):
        return "its engine came from elsewhere, and no GPU host has asked it for its inputs and profiles"
    return None


def relied_on(old: Manifest, new: Manifest) -> Table:
    """What clients of one version may rely on, beside the same of another: all that :func:`problems` compares."""
    before, after = _terms(old), _terms(new)
    rows = [(what, text, after.get(what, "")) for what, text in before.items()]
    rows += [(what, "", text) for what, text in after.items() if what not in before]
    return Table("What clients rely on", ("what", "champion", "candidate"), tuple(rows))


# ---- names, dtypes, structure --------------------------------------------------------------------------------------


def _tensor_problems(kind: str, old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[str]:
    there = {t.name: t for t in new}
    for before in old:
        after = there.get(before.name)
        if after is None:
            yield f"The {kind} {before.name!r} is gone."
            continue
        if after.dtype != before.dtype:
            yield f"The {kind} {before.name!r} is {after.dtype}, and was {before.dtype}."
        if len(after.shape) != len(before.shape):
            yield f"The {kind} {before.name!r} has rank {len(after.shape)}, and had {len(before.shape)}."
            continue
        for index, (was, size) in enumerate(zip(before.shape, after.shape)):
            if isinstance(was, int) and isinstance(size, int) and was != size:
                yield f"The {kind} {before.name!r} has the size {size} in dimension {index}, and had {was}."


def _result_problems(old: Structure, new: Structure, where: str) -> Iterator[str]:
    """What a client of native calls finds elsewhere: keys of a dict may be added at its end."""
    if isinstance(old, Branch) and isinstance(new, Branch) and old.kind == new.kind:
        keys, there = old.keys or (), new.keys or ()
        added = old.kind == "dict" and there[: len(keys)] == keys
        if (added and len(new.items) >= len(old.items)) or (keys == there and len(new.items) == len(old.items)):
            for key, was, item in zip(keys or range(len(old.items)), old.items, new.items):
                yield from _result_problems(was, item, f"{where}[{key!r}]")
            return
    elif isinstance(old, ConstantLeaf) and isinstance(new, ConstantLeaf):
        # A float is an answer, which another version may give otherwise; a count or a name is form.
        if type(old.value) is type(new.value) and (isinstance(old.value, float) or old.value == new.value):
            return
    elif old == new:
        return
    yield f"Native calls (engine(x, …)) answer otherwise: {where} is {_structure(new)}, and was {_structure(old)}."


# ---- the calls that are accepted -----------------------------------------------------------------------------------


def _shape_problems(old: Manifest, new: Manifest) -> Iterator[str]:
    assert old.interface is not None
    assert new.interface is not None
    axes = _axes(old.interface)
    wanted = _boxes(axes, old.interface, [profiles for plan in old.plans for profiles in _profiles(plan.profiles)])
    tied = list(_new_ties(axes, wanted, new.interface))
    yield from tied
    for plan in new.plans:
        offered = _boxes(axes, new.interface, _profiles(plan.profiles))
        for box in wanted:
            left = next(_uncovered(box, offered), None)
            if left is not None:
                where = f" ({folder_name(plan)})" if len(new.plans) > 1 else ""
                yield f"Calls with {_describe(left, box)} are accepted now and would be refused{where}."
    if not tied:
        yield from _size_problems(old.interface, new.interface, wanted)


def _profiles(profiles: Sequence[Profile] | None) -> Sequence[Profile]:
    """An engine without profiles is held by its interface alone."""
    return profiles or ({},)


def _axes(interface: Interface) -> list[Axis]:
    tied: dict[object, list[Place]] = {}
    for tensor in interface.inputs:
        for index, size in enumerate(tensor.shape):
            place = (tensor.name, index)
            # A fixed size is an axis of its own: a range of one.
            tied.setdefault(size if isinstance(size, str) else place, []).append(place)
    return [tuple(places) for places in tied.values()]


def _new_ties(axes: Sequence[Axis], wanted: Sequence[Box], new: Interface) -> Iterator[str]:
    """Sizes that clients choose freely now and that would have to be equal."""
    axis_of = {place: axis for axis in axes for place in axis}
    for tied in _axes(new):
        different = list(dict.fromkeys(axis_of[place] for place in tied if place in axis_of))
        # In every profile all of them one number, the same: then they are equal already.
        if any(len({size for axis in different for size in box[axis]}) > 1 for box in wanted if len(different) > 1):
            names = " and ".join(_name(axis) for axis in different)
            yield f"The sizes {names} may differ now and would have to be equal."


def _boxes(axes: Sequence[Axis], interface: Interface, profiles: Sequence[Profile]) -> list[Box]:
    return [box for profile in profiles if (box := _box(axes, interface, profile)) is not None]


def _box(axes: Sequence[Axis], interface: Interface, profile: Profile) -> Box | None:
    """The sizes that a profile accepts; None if it accepts none."""
    shapes = {t.name: t.shape for t in interface.inputs}
    box: Box = {}
    for axis in axes:
        bounds = [_bounds(shapes[name][index], profile, name, index) for name, index in axis]
        low, high = max(b[0] for b in bounds), min(b[1] for b in bounds)
        if low > high:
            return None
        box[axis] = (low, high)
    return box


def _bounds(size: Dimension, profile: Profile, name: str, index: int) -> tuple[int, int]:
    low, high = (size, size) if isinstance(size, int) else (1, _ANY)
    if (span := profile.get(name)) is not None and index < len(span.min):
        low, high = (max(low, span.min[index]), min(high, span.max[index]))
    return low, high


def _uncovered(box: Box, covers: Sequence[Box]) -> Iterator[Box]:
    """Yields boxes that make up what of ``box`` lies in none of ``covers``."""
    if not covers:
        yield box
        return
    first, rest = covers[0], covers[1:]
    inside = dict(box)
    for axis, (low, high) in box.items():
        below, above = first[axis]
        if below > high or above < low:
            yield from _uncovered(inside, rest)
            return
        if low < below:
            yield from _uncovered({**inside, axis: (low, below - 1)}, rest)
        if high > above:
            yield from _uncovered({**inside, axis: (above + 1, high)}, rest)
        inside[axis] = (max(low, below), min(high, above))


# ---- the sizes of outputs ------------------------------------------------------------------------------------------


def _size_problems(old: Interface, new: Interface, wanted: Sequence[Box]) -> Iterator[str]:
    """Outputs whose sizes differ in some call that is accepted now; relations that inputs would have to have."""
    there = {t.name: t for t in new.outputs}
    dimensions = [
        (before.name, index, was, there[before.name].shape[index])
        for before in old.outputs
        for index, was in enumerate(before.shape)
    ]
    # Bare symbols first: sizes of the data are known by them.
    dimensions.sort(key=lambda d: isinstance(d[2], int) or sizes.symbols(d[2]) != {d[2]})
    draws = random.Random(0)
    told: set[tuple[str, int]] = set()
    for call in (call for box in wanted for call in _calls(old, box, draws)):
        before, after = sizes.chosen(old, call), sizes.chosen(new, call)
        if isinstance(before, str):
            continue  # the old version does not take it
        if isinstance(after, str):
            yield f"Calls with {_sizes(call)} are accepted now; {after}."
            return
        unknown = sorted({s for _, _, _, size in dimensions for s in sizes.symbols(size) if s not in after})
        learnt = dict(before)
        data = {**after, **{symbol: draws.randint(2, 10_000) for symbol in unknown}}
        for name, index, was, size in dimensions:
            if (name, index) not in told and (problem := _size_problem(was, size, before, after, learnt, data)):
                told.add((name, index))
                yield f"The output {name!r} in dimension {index} {problem}{_with(call, was, size)}."


def _size_problem(
    was: Dimension,
    size: Dimension,
    before: Mapping[str, int],
    after: Mapping[str, int],
    learnt: dict[str, int],
    data: Mapping[str, int],
) -> str | None:
    """How one size of an output differs in one call.

    Args:
        was: In the old version.
        size: In the new one.
        before: The old one's symbols that the call tells.
        after: The new one's symbols that the call tells.
        learnt: ``before``, and sizes of the old one that depend on the data: what the new one has at their first place.
        data: ``after``, and made-up values for those that depend on the data.
    """
    kinds = sizes.kind(was, before), sizes.kind(size, after)
    if "unreadable" in kinds:
        same = sizes.canonical(was, before) == sizes.canonical(size, after)
        return None if same else f"is {size}, and was {was}; whether these are the same can't be told"
    if kinds == ("told", "told"):
        return None if sizes.value(was, before) == sizes.value(size, after) else f"is {size}, and was {was}"
    if kinds == ("told", "data"):
        return f"depends on the data ({size}), and was {was}"
    if kinds == ("data", "told"):
        return f"is {size}, and depended on the data ({was})"
    given, expected = sizes.value(size, data), sizes.value(was, learnt)
    if expected is None and given is not None:
        learnt[str(was)] = given
        return None
    return None if given == expected else f"is {size}, and was {was}: it had the size of another, which it has no more"


def _calls(interface: Interface, box: Box, draws: random.Random) -> Iterator[dict[Place, int]]:
    """Sizes of the inputs: all of a small box; of a large one the ends of each axis, and some at random."""
    axes = list(box)
    if math.prod(high - low + 1 for low, high in box.values()) <= _CALLS:
        for chosen in itertools.product(*(range(low, high + 1) for low, high in box.values())):
            yield from _fitting(interface, dict(zip(axes, chosen)))
        return
    lows, highs = ({axis: ends[end] for axis, ends in box.items()} for end in (0, 1))
    for axis in axes:
        yield from _fitting(interface, {**lows, axis: highs[axis]})
        yield from _fitting(interface, {**highs, axis: lows[axis]})
    for _ in range(_CALLS):
        near = {axis: draws.randint(low, min(high, low + 1000)) for axis, (low, high) in box.items()}
        yield from _fitting(interface, near)


def _fitting(interface: Interface, chosen: dict[Axis, int]) -> Iterator[dict[Place, int]]:
    """The call; sizes that are expressions of other inputs' are as these tell."""
    call = {place: size for axis, size in chosen.items() for place in axis}
    known = {
        size: call[(t.name, index)]
        for t in interface.inputs
        for index, size in enumerate(t.shape)
        if isinstance(size, str) and sizes.symbols(size) == {size}
    }
    for tensor in interface.inputs:
        for index, size in enumerate(tensor.shape):
            if isinstance(size, str) and size not in known and (told := sizes.value(size, known)) is not None:
                call[(tensor.name, index)] = told
    yield call


# ---- words ---------------------------------------------------------------------------------------------------------


def _terms(manifest: Manifest) -> dict[str, str]:
    interface = manifest.interface
    assert interface is not None
    terms = {f"input {t.name}": f"{t.dtype} {_shape(t.shape)}" for t in interface.inputs}
    terms |= {
        f"equal sizes, {_name(axis)}": " = ".join(_place(place) for place in axis)
        for axis in _axes(interface)
        if len(axis) > 1
    }
    for plan in manifest.plans:
        where = f", {folder_name(plan)}" if len(manifest.plans) > 1 else ""
        for number, profile in enumerate(plan.profiles or ()):
            spans = [f"{name} {_shape(span.min)} to {_shape(span.max)}" for name, span in profile.items()]
            terms[f"accepted sizes, profile {number}{where}"] = ", ".join(spans)
    terms |= {f"output {t.name}": f"{t.dtype} {_shape(t.shape)}" for t in interface.outputs}
    terms["order of outputs"] = ", ".join(t.name for t in interface.outputs)
    terms["arguments of a native call"] = _structure(interface.arguments)
    terms["result of a native call"] = _structure(interface.result)
    return terms


def _structure(structure: Structure) -> str:
    """``{'logits': logits, 'loss': None}``."""
    if isinstance(structure, ConstantLeaf):
        return repr(structure.value)
    if not isinstance(structure, Branch):
        return structure.name
    items = [_structure(item) for item in structure.items]
    if structure.kind == "dict":
        return f"{{{', '.join(f'{key!r}: {item}' for key, item in zip(structure.keys or (), items))}}}"
    if structure.kind == "namedtuple":
        named = ", ".join(f"{key}={item}" for key, item in zip(structure.keys or (), items))
        return f"{structure.type_name or 'namedtuple'}({named})"
    inside = ", ".join(items)
    return f"[{inside}]" if structure.kind == "list" else f"({inside}{',' if len(items) == 1 else ''})"


def _describe(left: Box, whole: Box) -> str:
    """The sizes that set the rest apart; all where nothing does."""

    def size(bounds: tuple[int, int]) -> str:
        low, high = bounds
        return str(low) if low == high else f"{low} or more" if high == _ANY else f"{low} to {high}"

    telling = {axis: bounds for axis, bounds in left.items() if bounds != whole[axis]}
    return ", ".join(f"{_name(axis)} = {size(bounds)}" for axis, bounds in (telling or left).items())


def _with(call: Mapping[Place, int], was: Dimension, size: Dimension) -> str:
    return "" if isinstance(was, int) and isinstance(size, int) else f" (in a call with {_sizes(call)})"


def _sizes(call: Mapping[Place, int]) -> str:
    shapes: dict[str, list[int]] = {}
    for (name, _), size in sorted(call.items()):
        shapes.setdefault(name, []).append(size)
    return ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())


def _shape(shape: Sequence[Dimension]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _name(axis: Axis) -> str:
    return _place(axis[0])


def _place(place: Place) -> str:
    return f"{place[0]}.shape[{place[1]}]"
