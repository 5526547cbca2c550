"""Whether what clients send to one version is accepted by another: a pure function of two manifests.

Shapes are compared as sets. What an engine accepts is a union of boxes, one for each optimization profile, with an axis
for each size that a caller chooses: a symbol of the interface ("batch"), or a dimension of its own. Two profiles of the
new version may cover one of the old, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..manifest import Interface, Manifest, Profile, ShapeRange, Tensor
from ..plan import folder_name

Axis = tuple[str, ...]
"""The dimensions that always have the same size: ``("x.0", "mask.0")``."""
Box = dict[Axis, tuple[int, int]]


def problems(old: Manifest, new: Manifest) -> list[str]:
    """What clients of one version would run into with another.

    Args:
        old: What clients use now.
        new: What would take its place.

    Returns:
        One sentence for each; empty if every call that ``old`` accepts is accepted by ``new``, and answered with
        outputs of the same names, dtypes and ranks.
    """
    assert old.interface is not None
    assert new.interface is not None
    found = [
        *_tensor_problems("input", old.interface.inputs, new.interface.inputs),
        *_tensor_problems("output", old.interface.outputs, new.interface.outputs),
    ]
    known = {t.name for t in old.interface.inputs}
    found += [
        f"The input {t.name!r} is new: clients do not send it." for t in new.interface.inputs if t.name not in known
    ]
    if not found and old.interface.arguments != new.interface.arguments:
        found.append("Arguments nest otherwise or come in another order: native calls (engine(x, …)) would fail.")
    return found or list(dict.fromkeys(_shape_problems(old, new)))


def notes(old: Manifest, new: Manifest) -> list[str]:
    """Differences that break no ``predict`` call but that a client may want to know."""
    assert old.interface is not None
    assert new.interface is not None
    found = []
    known = {t.name for t in old.interface.outputs}
    extra = [t.name for t in new.interface.outputs if t.name not in known]
    if extra:
        found.append(f"There are new outputs: {', '.join(extra)}.")
    if old.interface.result != new.interface.result:
        found.append("The result of a native call nests otherwise; the dict that predict returns is not affected.")
    return found


def unknown(manifest: Manifest) -> str | None:
    """Why a version has no contract on record; None if it has one."""
    if manifest.interface is None or any(p.profiles is None for p in manifest.plans):
        return "its engine came from elsewhere, and no GPU host has asked it for its inputs and profiles"
    return None


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


def _shape_problems(old: Manifest, new: Manifest) -> Iterator[str]:
    assert old.interface is not None
    assert new.interface is not None
    axes = list(_axes(old.interface))
    yield from _new_ties(axes, old, new.interface)
    wanted = [box for plan in old.plans for profile in plan.profiles or () if (box := _box(axes, profile))]
    for plan in new.plans:
        offered = [box for profile in plan.profiles or () if (box := _box(axes, profile))]
        for box in wanted:
            left = next(_uncovered(box, offered), None)
            if left is not None:
                where = f" ({folder_name(plan)})" if len(new.plans) > 1 else ""
                yield f"Calls with {_describe(left, box)} are accepted now and would be refused{where}."


def _axes(interface: Interface) -> Iterator[Axis]:
    tied: dict[str, list[str]] = {}
    for tensor in interface.inputs:
        for index, size in enumerate(tensor.shape):
            # A fixed size is an axis of its own: a range of one.
            tied.setdefault(size if isinstance(size, str) else f"{tensor.name}.{index}", []).append(
                f"{tensor.name}.{index}"
            )
    for names in tied.values():
        yield tuple(names)


def _new_ties(axes: Sequence[Axis], old: Manifest, new: Interface) -> Iterator[str]:
    """Sizes that clients choose freely now and that would have to be equal."""
    axis_of = {dimension: axis for axis in axes for dimension in axis}
    fixed = {axis: _only_size(axis, old) for axis in axes}
    for tied in _axes(new):
        there = [axis_of[d] for d in tied if d in axis_of]
        different = list(dict.fromkeys(there))
        sizes = {fixed[axis] for axis in different}
        if len(different) > 1 and (None in sizes or len(sizes) > 1):
            names = " and ".join(axis[0] for axis in different)
            yield f"The sizes {names} may differ now and would have to be equal."


def _only_size(axis: Axis, manifest: Manifest) -> int | None:
    ranges = {
        size
        for plan in manifest.plans
        for profile in plan.profiles or ()
        if (box := _box([axis], profile))
        for size in box[axis]
    }
    return ranges.pop() if len(ranges) == 1 else None


def _box(axes: Iterable[Axis], profile: Profile) -> Box | None:
    """The sizes that a profile accepts; None if it accepts none."""
    box: Box = {}
    for axis in axes:
        bounds = [b for b in (_bounds(profile, dimension) for dimension in axis) if b is not None]
        if not bounds:
            continue
        low, high = max(b[0] for b in bounds), min(b[1] for b in bounds)
        if low > high:
            return None
        box[axis] = (low, high)
    return box


def _bounds(profile: Mapping[str, ShapeRange], dimension: str) -> tuple[int, int] | None:
    name, _, index = dimension.rpartition(".")
    span = profile.get(name)
    return (span.min[int(index)], span.max[int(index)]) if span is not None and int(index) < len(span.min) else None


def _uncovered(box: Box, covers: Sequence[Box]) -> Iterator[Box]:
    """Yields boxes that make up what of ``box`` lies in none of ``covers``."""
    if not covers:
        yield box
        return
    first, rest = covers[0], covers[1:]
    inside = dict(box)
    for axis, (low, high) in box.items():
        below, above = first.get(axis, (low, high))
        if below > high or above < low:
            yield from _uncovered(inside, rest)
            return
        if low < below:
            yield from _uncovered({**inside, axis: (low, below - 1)}, rest)
        if high > above:
            yield from _uncovered({**inside, axis: (above + 1, high)}, rest)
        inside[axis] = (max(low, below), min(high, above))


def _describe(left: Box, whole: Box) -> str:
    """The sizes that set the rest apart; all where nothing does."""

    def size(bounds: tuple[int, int]) -> str:
        return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"

    def name(axis: Axis) -> str:
        tensor, _, index = axis[0].rpartition(".")
        return f"{tensor}.shape[{index}]"

    telling = {axis: bounds for axis, bounds in left.items() if bounds != whole[axis]}
    return ", ".join(f"{name(axis)} = {size(bounds)}" for axis, bounds in (telling or left).items())
