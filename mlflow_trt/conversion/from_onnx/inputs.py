"""The graph's inputs with the sizes that the caller gives them: by an Input each, or by the names of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np

from ...errors import SettingError
from ...inputs import Input, InputRange, dtype_name, is_dimension_name
from ...plan.dtypes import CALLERS, torch_tensorrt_name
from ...plan.manifest import Dimension, Profile, ShapeRange
from .model import GraphTensor, OnnxModel

Span = tuple[int, int, int]
Dims = Mapping[str, Union[int, Span]]

_FED = {"float64": "float32"}
"""TensorRT has none."""


@dataclass(frozen=True)
class FedInput:
    """One input: what callers feed it, and the shapes it may have."""

    name: str
    dtype: str
    """What callers feed and the engine takes."""
    ranges: tuple[InputRange, ...]
    """One per optimization profile; a single one holds in all."""
    shape: tuple[Dimension, ...]
    """A number for a fixed size, a name for a dynamic one."""
    example: np.ndarray | None = field(default=None, compare=False)
    """Real values, where the caller gave an array."""

    def range(self, profile: int) -> InputRange:
        return self.ranges[profile if len(self.ranges) > 1 else 0]

    def span(self, dim: int, profile: int) -> Span:
        """(min, opt, max) of a dimension."""
        r = self.range(profile)
        return r.min[dim], r.opt[dim], r.max[dim]


def describe(model: OnnxModel, inputs: Any = None, kwarg_inputs: Any = None, dims: Any = None) -> tuple[FedInput, ...]:
    """Brings what the caller says together with what the graph says.

    Args:
        model: The model.
        inputs: By position, or a dict by name, of :class:`mlflow_trt.Input`, ``torch_tensorrt.Input`` or example
            arrays. An Input with a name goes to the input of this name. Inputs that are left out must be static, or
            ``dims`` must name their dynamic dimensions.
        kwarg_inputs: The same by name.
        dims: By name of a dynamic dimension of the graph: a size, or (min, opt, max).

    Raises:
        SettingError: They contradict each other, name what the graph has not, or leave a dynamic dimension open.
    """
    given = _by_name(model, inputs, kwarg_inputs)
    named = _spans(model, dims)
    described = [_Described(tensor, given.get(tensor.name), named) for tensor in model.inputs]
    profiles = {len(d.ranges) for d in described} - {1}
    if len(profiles) > 1:
        raise SettingError(
            f"The inputs have {sorted(profiles)} optimization profiles.",
            "one number of profiles for all inputs (an input with a single one has it in all)",
            "give every dynamic input the same number of profiles",
        )
    return _symbols(described, next(iter(profiles), 1))


def profiles(inputs: Sequence[FedInput]) -> tuple[Profile, ...]:
    """The optimization profiles, by input name."""
    count = max((len(one.ranges) for one in inputs), default=1)
    return tuple(
        {one.name: ShapeRange(min=(r := one.range(i)).min, opt=r.opt, max=r.max) for one in inputs}
        for i in range(count)
    )


def fixed_sizes(inputs: Sequence[FedInput]) -> dict[str, tuple[int | None, ...]]:
    """For every input its sizes that are always the same, and None for the others."""
    return {one.name: tuple(n if isinstance(n, int) else None for n in one.shape) for one in inputs}


class _Described:
    """An input of the graph, and its ranges."""

    def __init__(self, tensor: GraphTensor, given: Any, named: Mapping[str, Span]) -> None:
        self.tensor = tensor
        self.given_names: tuple[str | None, ...] = ()
        self.example: np.ndarray | None = None
        self.dtype = _fed(tensor.dtype)
        if given is None:
            self.ranges = _from_names(tensor, named)
        else:
            self._from_input(given)
        assert tensor.shape is None or len(tensor.shape) == len(self.ranges[0].min)

    def _from_input(self, given: Any) -> None:
        spec = _input(self.tensor.name, given)
        if isinstance(given, np.ndarray) or hasattr(given, "__array__"):
            self.example = np.asarray(given)
        self.ranges, self.given_names = spec.ranges, spec.dimension_names
        if spec.dtype not in (self.tensor.dtype, self.dtype):
            raise SettingError(
                f"The input {self.tensor.name} is {self.tensor.dtype} in the graph, and {spec.dtype} was given.",
                self.dtype,
                f"write Input(shape, {self.dtype!r}), or give the range by the dimension's name: dims=",
            )
        shape = self.tensor.shape
        if shape is not None and len(shape) != spec.rank:
            raise SettingError(
                f"The input {self.tensor.name} has {len(shape)} dimensions in the graph, and {spec.rank} were given.",
                _shown(shape),
                "give every dimension of the graph a size or a range",
            )
        for dim, size in enumerate(shape or ()):
            spans = {n for r in self.ranges for n in (r.min[dim], r.max[dim])}
            if isinstance(size, int) and spans != {size}:
                raise SettingError(
                    f"Dimension {dim} of the input {self.tensor.name} is always {size} in the graph, and "
                    f"{', '.join(map(str, sorted(spans)))} was given.",
                    _shown(shape or ()),
                    "give this size, or export the graph with a dynamic dimension",
                )

    def name_of(self, dim: int) -> str | None:
        """What the graph calls a dimension."""
        size = None if self.tensor.shape is None else self.tensor.shape[dim]
        return size if isinstance(size, str) else None


def _fed(dtype: str) -> str:
    dtype = _FED.get(dtype, dtype)
    return CALLERS.get(dtype, dtype)


def _by_name(model: OnnxModel, inputs: Any, kwarg_inputs: Any) -> dict[str, Any]:
    names = [tensor.name for tensor in model.inputs]
    given: dict[str, Any] = {}
    positional: Sequence[Any] = ()
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif inputs is not None:
        positional = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    for position, value in enumerate(positional):
        name = getattr(value, "name", None) or (names[position] if position < len(names) else None)
        if name is None:
            raise SettingError(
                f"{len(positional)} inputs were given.",
                f"at most {len(names)}: {', '.join(names)}",
                "leave the rest out",
            )
        if name in given:
            raise SettingError(f"The input {name!r} is given twice.", "every input once", "leave one out")
        given[name] = value
    for name, value in dict(kwarg_inputs or {}).items():
        if name in given:
            raise SettingError(f"The input {name!r} is given twice.", "every input once", "leave one out")
        given[name] = value
    if unknown := [name for name in given if name not in names]:
        raise SettingError(
            f"The graph has no input {', '.join(map(repr, unknown))}.", f"one of {', '.join(names)}", "correct the name"
        )
    return given


def _input(name: str, given: Any) -> Input:
    """What was given, as an Input."""
    if isinstance(given, Input):
        return given
    if hasattr(given, "shape_mode"):  # a torch_tensorrt.Input, told by its attributes: its package needs torch
        shapes = getattr(given, "profiles", None) or [given.shape]
        made = [
            list(zip(s["min_shape"], s["opt_shape"], s["max_shape"])) if isinstance(s, dict) else list(s)
            for s in shapes
        ]
        return Input(dtype=dtype_name(torch_tensorrt_name(getattr(given.dtype, "name", "f32"))), profiles=made)
    if isinstance(given, np.ndarray) or hasattr(given, "__array__"):
        array = np.asarray(given)
        return Input(array.shape, array.dtype)
    raise SettingError(
        f"What was given for the input {name} is a {type(given).__name__}: {str(given)[:80]}.",
        "mlflow_trt.Input, torch_tensorrt.Input or an array",
        "describe the input by its shape and dtype: Input((1, 3, 224, 224))",
    )


def _spans(model: OnnxModel, dims: Any) -> dict[str, Span]:
    if dims is None:
        return {}
    known = dimension_names(model)
    if not isinstance(dims, Mapping):
        raise SettingError(f"dims is a {type(dims).__name__}.", "a dict by name", "write dims={'batch': (1, 8, 32)}")
    spans: dict[str, Span] = {}
    for name, value in dims.items():
        if name not in known:
            raise SettingError(
                f"The graph has no dynamic dimension {name!r}.",
                f"one of {', '.join(known)}" if known else "a graph whose dimensions have names",
                "correct the name" if known else "give ranges by inputs=",
            )
        sizes = (value, value, value) if isinstance(value, int) else tuple(value)
        if len(sizes) != 3 or not all(type(n) is int for n in sizes) or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise SettingError(
                f"dims[{name!r}] is {value!r}.", "a size, or (min, opt, max) in this order", "write (1, 8, 32)"
            )
        spans[name] = sizes
    return spans


def dimension_names(model: OnnxModel) -> list[str]:
    """The names that the graph has for dynamic dimensions of its inputs, in their order."""
    names = (size for tensor in model.inputs for size in tensor.shape or () if isinstance(size, str))
    return list(dict.fromkeys(names))


def _from_names(tensor: GraphTensor, named: Mapping[str, Span]) -> tuple[InputRange, ...]:
    open_dims = [
        f"{size}" if isinstance(size, str) else f"dimension {dim}, which has no name"
        for dim, size in enumerate(tensor.shape or ())
        if not isinstance(size, int) and size not in named
    ]
    if tensor.shape is None or open_dims:
        example = ", ".join(str(s) if isinstance(s, int) else "(1, 4, 8)" for s in tensor.shape or ())
        by_name = [size for size in tensor.shape or () if isinstance(size, str) and size not in named]
        raise SettingError(
            f"The input {tensor.name} has no range for {', '.join(open_dims) or 'any dimension'}.",
            "the smallest, the usual and the largest size of every dynamic dimension",
            (f"give dims={{{by_name[0]!r}: (1, 8, 32)}} (--dim {by_name[0]}=1:8:32), or " if by_name else "give ")
            + f"inputs={{{tensor.name!r}: Input(({example}), {_fed(tensor.dtype)!r})}}",
        )
    spans = [(s, s, s) if isinstance(s, int) else named[str(s)] for s in tensor.shape]
    low, opt, high = zip(*spans) if spans else ((), (), ())
    return (InputRange(tuple(low), tuple(opt), tuple(high)),)


def _symbols(described: Sequence[_Described], count: int) -> tuple[FedInput, ...]:
    """Names the dynamic dimensions: as the caller does, or the graph; first ones without any name are one batch."""
    by_graph: dict[str, str] = {}
    spans: dict[str, tuple[str, list[Span]]] = {}
    batches: dict[tuple[Span, ...], str] = {}
    taken = {n for d in described for n in d.given_names if n} | {
        n for d in described for dim in range(len(d.ranges[0].min)) if (n := d.name_of(dim)) and is_dimension_name(n)
    }
    made = []
    for one in described:
        fed = FedInput(one.tensor.name, one.dtype, one.ranges, (), one.example)
        shape: list[Dimension] = []
        for dim in range(len(one.ranges[0].min)):
            sizes = [fed.span(dim, profile) for profile in range(count)]
            own, graph = (one.given_names[dim] if one.given_names else None), one.name_of(dim)
            where = f"dimension {dim} of {one.tensor.name}"
            if graph is not None:
                _same(spans, f"in the graph {graph!r}", where, sizes)
            if len({n for span in sizes for n in span}) == 1:
                shape.append(sizes[0][0])
                continue
            if own is None and graph is None and dim == 0:
                own = batches.setdefault(tuple(sizes), _free(taken, "batch"))
            elif own is None:
                own = graph if graph is not None and is_dimension_name(graph) else None
            if graph is not None:
                own = by_graph.setdefault(graph, own or _free(taken, "s"))
            own = own or _free(taken, "s")
            taken.add(own)
            _same(spans, f"{own!r}", where, sizes)
            shape.append(own)
        made.append(FedInput(fed.name, fed.dtype, fed.ranges, tuple(shape), fed.example))
    return tuple(made)


def _same(known: dict[str, tuple[str, list[Span]]], name: str, where: str, sizes: list[Span]) -> None:
    first, others = known.setdefault(name, (where, sizes))
    if others != sizes:
        raise SettingError(
            f"The {first} and {where} are both named {name}, and are {_ranges(others)} and {_ranges(sizes)}.",
            "one range for one name, in every profile: such dimensions always have the same size",
            "give both the same range",
        )


def _ranges(sizes: Sequence[Span]) -> str:
    return "; ".join(":".join(map(str, span)) for span in sizes)


def _free(taken: set[str], stem: str) -> str:
    if stem == "batch" and stem not in taken:
        return stem
    return next(name for n in range(len(taken) + 1) if (name := f"{stem}{n}") not in taken)


def _shown(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
