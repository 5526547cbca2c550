"""A call's inputs against an engine's interface: named, checked, and matched with an optimization profile.

Pure numpy, no GPU: whatever does not fit is refused here, before anything reaches the device. What fits is found in a
table the second time: a call with known shapes costs one dtype comparison per input and one lookup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, ManifestError
from .dtypes import CALLERS, STORAGE
from .manifest import Dimension, Interface, Profile, Structure, Tensor
from .pytree import Unflatten, flatten, leaves, unflattener

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
"""The shapes of all inputs, in the interface's order: what an execution context is bound to."""

_KNOWN_SHAPES = 4096
"""How many shapes are remembered; a stream of ever new ones (free image sizes, say) must not fill the memory."""


@dataclass(frozen=True)
class CheckedCall:
    """A call that fits: arrays in the interface's order, their shapes, and the profile that serves them best."""

    arrays: list[np.ndarray]
    shapes: Shapes
    profile: int


class CallSignature:
    """Knows how a model is called and which shapes it takes.

    Args:
        interface: Names, dtypes, shapes and structure.
        profiles: The engine's optimization profiles; none: sizes are checked against the interface's alone.

    Raises:
        ManifestError: The interface contradicts itself.
    """

    def __init__(self, interface: Interface, profiles: Sequence[Profile]) -> None:
        self.interface = interface
        self.profiles = tuple(profiles)
        self.names = tuple(t.name for t in interface.inputs)
        self._dtypes = tuple(_public_dtype(t) for t in interface.inputs)
        for t in interface.outputs:
            _public_dtype(t)
        self._known: dict[Shapes, int] = {}
        self._unflatten: Unflatten = unflattener(interface.result)
        self._only = self.names[0] if len(self.names) == 1 else None
        self._plain = _plain_names(interface)
        named = {leaf.name for leaf in leaves(interface.result) if leaf.kind == "tensor"}
        if unknown := named - {t.name for t in interface.outputs}:
            raise ManifestError(
                f"The manifest's result holds {sorted(unknown)}, which no output is.",
                f"names among {[t.name for t in interface.outputs]}",
                "log the model again",
            )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Names the tensors of a native call.

        Raises:
            InputError: The arguments don't nest as the model was exported.
        """
        if self._plain is not None and not kwargs and len(args) == len(self._plain):
            return dict(zip(self._plain, args))
        return flatten(self.interface.arguments, args, kwargs)

    def named(self, inputs: Any) -> Mapping[str, Any]:
        """Names the tensors of a ``predict`` call: a dict as it is, one bare array if the model has one input.

        Raises:
            InputError: It is neither.
        """
        if isinstance(inputs, Mapping):
            return inputs
        if self._only is not None:
            return {self._only: inputs}
        raise InputError(
            f"The inputs are a {type(inputs).__name__}.",
            f"a dict with the {len(self.names)} inputs {', '.join(self.names)}",
            "give each array under its name",
        )

    def check(self, tensors: Mapping[str, Any]) -> CheckedCall:
        """Checks named inputs: names, dtypes, ranks and sizes.

        Arrays may be in any memory order, non-contiguous, big-endian or read-only. Python numbers and lists of them are
        taken as arrays of the input's dtype where that loses nothing but float precision; an array of another dtype is
        refused, since nothing says which conversion its owner meant.

        Returns:
            The arrays, not copied where they were arrays already.

        Raises:
            InputError: Something does not fit; the message names the input and the range.
        """
        arrays = []
        for name, dtype in zip(self.names, self._dtypes):
            value = tensors.get(name, _MISSING)
            if type(value) is not np.ndarray:
                if value is _MISSING:
                    raise self._wrong_names(tensors)
                value = _as_array(name, value, dtype)
            if value.dtype != dtype and value.dtype.newbyteorder("=") != dtype:
                raise InputError(
                    f"Input {name!r} has the dtype {value.dtype}.",
                    f"{dtype.name}",
                    f"convert it: {name}.astype({dtype.name!r})",
                )
            arrays.append(value)
        if len(tensors) != len(arrays):
            raise self._wrong_names(tensors)
        shapes = tuple([a.shape for a in arrays])
        return CheckedCall(arrays, shapes, self.profile_of(shapes))

    def profile_of(self, shapes: Shapes) -> int:
        """Returns the index of the optimization profile that serves these shapes best.

        Among the profiles that hold all of them, the one whose opt is nearest: the smallest sum of |log(size / opt)|
        over all dimensions, the first on a tie.

        Raises:
            InputError: Rank, a fixed size, equal symbols, or every profile's range is violated.
        """
        profile = self._known.get(shapes)
        if profile is None:
            profile = self._check_shapes(shapes)
            if len(self._known) >= _KNOWN_SHAPES:
                self._known.clear()
            self._known[shapes] = profile
        return profile

    def unflatten(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        """Puts outputs into the model's own structure; ``inputs`` serve for those that are handed through."""
        return self._unflatten(outputs, inputs)

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the ``(args, kwargs)`` of a native call with these inputs."""
        args, kwargs = unflattener(self.interface.arguments)(tensors, tensors)
        return tuple(args), dict(kwargs)

    def _check_shapes(self, shapes: Shapes) -> int:
        for tensor, shape in zip(self.interface.inputs, shapes):
            if len(shape) != len(tensor.shape):
                raise InputError(
                    f"Input {tensor.name!r} has the shape {shape}: {len(shape)} dimensions.",
                    f"{len(tensor.shape)}: {_format(tensor.shape)}",
                    _rank_remedy(tensor, shape),
                )
            for place, (size, want) in enumerate(zip(shape, tensor.shape)):
                if isinstance(want, int) and size != want:
                    raise InputError(
                        f"Input {tensor.name!r} has the shape {shape}: size {size} in dimension {place}.",
                        f"{want}, which is fixed: {_format(tensor.shape)}",
                        f"give {want} there, or convert the model with a range in that dimension",
                    )
            if 0 in shape and not self.profiles:
                raise InputError(
                    f"Input {tensor.name!r} has the shape {shape}: it is empty.",
                    f"sizes of at least 1: {_format(tensor.shape)}",
                    "give at least one row: TensorRT has no empty batches",
                )
        equal_sizes((t.name, shape, t.shape) for t, shape in zip(self.interface.inputs, shapes))
        if not self.profiles:
            return 0
        fitting = [
            (self._distance(profile, shapes), index)
            for index, profile in enumerate(self.profiles)
            if not self._outside(profile, shapes)
        ]
        if fitting:
            return min(fitting)[1]
        raise self._outside_all(shapes)

    def _outside(self, profile: Profile, shapes: Shapes) -> list[tuple[str, Shape, int]]:
        return [
            (name, shape, place)
            for name, shape in zip(self.names, shapes)
            if (bounds := profile.get(name)) is not None
            for place, (low, size, high) in enumerate(zip(bounds.min, shape, bounds.max))
            if not low <= size <= high
        ]

    def _distance(self, profile: Profile, shapes: Shapes) -> float:
        return math.fsum(
            abs(math.log(size / opt))
            for name, shape in zip(self.names, shapes)
            if (bounds := profile.get(name)) is not None
            for size, opt in zip(shape, bounds.opt)
            if size and opt
        )

    def _outside_all(self, shapes: Shapes) -> InputError:
        # The profile with the fewest violations is the one that the caller most likely meant.
        index, wrong = min(
            ((i, self._outside(p, shapes)) for i, p in enumerate(self.profiles)), key=lambda pair: len(pair[1])
        )
        name, shape, place = wrong[0]
        bounds = self.profiles[index][name]
        symbol = self.interface.inputs[self.names.index(name)].shape[place]
        named = f" ({symbol})" if isinstance(symbol, str) else ""
        low, high, size = bounds.min[place], bounds.max[place], shape[place]
        ranges = "; ".join(
            f"profile {i}: {name} from {p[name].min} to {p[name].max}" for i, p in enumerate(self.profiles) if name in p
        )
        if size == 0:
            remedy = "give at least one row: TensorRT has no empty batches"
        elif size < low:
            remedy = f"pad it to {low}, or convert with a smaller min"
        else:
            remedy = f"split it, or convert with a larger max (here {high})"
        return InputError(
            f"Input {name!r} has the shape {shape}: size {size} in dimension {place}{named} is "
            + ("below the minimum." if size < low else "above the maximum."),
            f"{low} to {high} ({ranges})" if low != high else f"{low} ({ranges})",
            remedy,
        )

    def _wrong_names(self, tensors: Mapping[str, Any]) -> InputError:
        missing = [n for n in self.names if n not in tensors]
        extra = [str(n) for n in tensors if n not in self.names]
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"not known: {', '.join(extra)}"] * bool(extra)
        return InputError(
            f"The inputs don't fit: {'; '.join(parts)}.",
            f"exactly {', '.join(self.names)}",
            "give each array under its name",
        )


_MISSING = object()

_SYMBOL = re.compile(r"([A-Za-z_][\w.]*)(\(?)")


def batch_symbols(interface: Interface) -> tuple[str, ...]:
    """The symbols that stand for a batch: an input's first dimension, where it is dynamic."""
    return tuple(dict.fromkeys(t.shape[0] for t in interface.inputs if t.shape and isinstance(t.shape[0], str)))


def batch_size(interface: Interface, tensors: Mapping[str, Any]) -> int | None:
    """The size of the first batch symbol in these inputs; None: the model has no batch dimension."""
    for tensor in interface.inputs:
        if tensor.shape and isinstance(tensor.shape[0], str):
            return int(np.shape(tensors[tensor.name])[0])
    return None


def equal_sizes(inputs: Iterable[tuple[str, Sequence[int], Sequence[Dimension]]]) -> None:
    """Compares the sizes of dimensions that are one.

    Args:
        inputs: Of each its name, its shape and, as long, its symbolic shape.

    Raises:
        InputError: Two dimensions of one symbol differ; names both inputs.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape, wanted in inputs:
        for place, (size, want) in enumerate(zip(shape, wanted)):
            if isinstance(want, int):
                continue
            known, whose = sizes.setdefault(want, (size, name))
            if known != size:
                raise InputError(
                    f"Input {name!r} has the shape {tuple(shape)}: {size} in dimension {place} ({want}), and {whose!r} "
                    f"has {known}.",
                    f"the same size, {want}, in both",
                    "give inputs that belong together",
                )


def symbols_of(size: Dimension) -> set[str]:
    """The symbols of a dimension: those of ``Max(1, 2*length)`` are ``length``."""
    return {name for name, bracket in _SYMBOL.findall(str(size)) if not bracket}


def _as_array(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """Arrays of other kinds as they are; Python numbers and lists with the input's dtype where it holds them."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        try:
            return np.asarray(value)
        except Exception as error:
            raise InputError(
                f"Input {name!r} is a {type(value).__name__} that can't be read as an array: {error}.",
                f"an array of dtype {dtype.name} in host memory",
                "convert it to a numpy array first",
            ) from error
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"Input {name!r} is a nested list of unequal lengths.", "a rectangular array", "pad the shorter rows"
        ) from error
    fits = array.dtype == dtype or (
        array.dtype.kind in "if" and (dtype.kind == "f" or (array.dtype.kind == "i" and dtype.kind in "iu"))
    )
    if array.size == 0 and array.dtype.kind == "f":
        return array.astype(dtype)
    if not fits:
        raise InputError(
            f"Input {name!r} is a {type(value).__name__} of {array.dtype if array.dtype != object else 'objects'}.",
            f"an array of dtype {dtype.name}",
            f"give np.asarray(..., dtype={dtype.name!r})",
        )
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(
                f"Input {name!r} holds {array.min()} to {array.max()}.",
                f"{limits.min} to {limits.max}, which {dtype.name} can hold",
                "give smaller numbers",
            )
    return array.astype(dtype)


def _public_dtype(tensor: Tensor) -> np.dtype:
    if CALLERS.get(tensor.dtype) != tensor.dtype:
        raise ManifestError(
            f"{tensor.name!r} has the dtype {tensor.dtype} in the manifest.",
            f"one of {', '.join(dict.fromkeys(CALLERS.values()))}",
            "build the engine with such inputs and outputs; inside it may hold any",
        )
    return STORAGE[tensor.dtype]


def _plain_names(interface: Interface) -> tuple[str, ...] | None:
    """The inputs' names if the model takes nothing but tensors by position, which most models do."""
    structure: list[Structure] = list(interface.arguments.items)
    if len(structure) != 2 or structure[0].kind != "tuple" or structure[1].kind != "dict" or structure[1].items:
        return None
    flat = structure[0].items
    names = tuple(item.name for item in flat if item.kind == "tensor")
    return names if len(names) == len(flat) else None


def _rank_remedy(tensor: Tensor, shape: Shape) -> str:
    if len(shape) == len(tensor.shape) - 1 and tensor.shape and isinstance(tensor.shape[0], str):
        return f"add the batch dimension: {tensor.name}[None]"
    return "reshape it"


def _format(shape: tuple[Dimension, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
