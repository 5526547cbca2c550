"""What the caller says of a model's inputs, brought to one form: arguments whose leaves are a Spec or a constant."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from .._torch import pytree
from ..errors import SettingError
from ..inputs import Input, InputRange, dtype_name, is_dimension_name
from ..plan.dtypes import torch_tensorrt_name

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """One input tensor: what the caller gives it, and the shapes it may have."""

    ranges: tuple[InputRange, ...]
    """One per optimization profile; a single one holds in all of them."""
    dtype: torch.dtype | None
    """What the caller feeds; None: what the model takes."""
    example: torch.Tensor | None = field(default=None, compare=False)
    """Real values, where the caller gave a tensor."""
    name: str | None = None
    symbols: Mapping[int, str] = field(default_factory=dict, compare=False)
    """Names that the caller gave to dynamic dimensions; equal ones always have the same size."""
    domain: tuple[float, float] | None = None
    """Half-open interval of the values; None: not said."""

    def range(self, profile: int) -> InputRange:
        return self.ranges[profile if len(self.ranges) > 1 else 0]

    @property
    def rank(self) -> int:
        return len(self.ranges[0].min)

    @property
    def low(self) -> tuple[int, ...]:
        """The smallest size of every dimension, over all profiles."""
        return tuple(min(sizes) for sizes in zip(*(r.min for r in self.ranges)))

    @property
    def high(self) -> tuple[int, ...]:
        """The largest size of every dimension, over all profiles."""
        return tuple(max(sizes) for sizes in zip(*(r.max for r in self.ranges)))

    @property
    def dynamic(self) -> tuple[bool, ...]:
        return tuple(low != high for low, high in zip(self.low, self.high))


@dataclass(frozen=True)
class Arguments:
    """A call's arguments, nested as the model takes them; leaves are a Spec, or a constant."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def specs(self) -> list[Spec]:
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Spec)]

    @property
    def profiles(self) -> int:
        return max((len(spec.ranges) for spec in self.specs), default=1)


def is_leaf(value: object) -> bool:
    """Whether a value is an input's description: none of these is a container of others."""
    return isinstance(value, (Spec, Input, torch.Tensor, np.ndarray)) or is_foreign_input(value)


def leaves(tree: object) -> list[Any]:
    """The leaves of nested arguments, in torch.export's order."""
    return pytree.tree_flatten(tree, is_leaf=lambda v: isinstance(v, Spec))[0]


def is_foreign_input(value: object) -> bool:
    """Whether a value is a ``torch_tensorrt.Input``, told by its attributes: importing the package needs a GPU."""
    return hasattr(value, "shape_mode") and hasattr(value, "shape") and hasattr(value, "dtype")


def parse(model: torch.nn.Module | ExportedProgram, inputs: object, kwarg_inputs: object) -> Arguments:
    """Brings the caller's inputs to one form.

    Args:
        model: For the names of its parameters, and for an exported program that was given no inputs.
        inputs: A sequence of inputs, or one; see :func:`mlflow_trt.convert`.
        kwarg_inputs: Inputs by name.

    Raises:
        SettingError: An input is of no known kind, a name is given twice or unknown, or profiles differ in number.
    """
    if inputs is None and kwarg_inputs is None:
        if not isinstance(model, ExportedProgram):
            raise SettingError(
                "convert was given no inputs.",
                "the shape and dtype of every input of the model",
                "pass inputs=[mlflow_trt.Input((1, 3, 224, 224))], or example tensors",
            )
        return _of_program(model)
    if kwarg_inputs is not None and not isinstance(kwarg_inputs, Mapping):
        raise SettingError(
            f"kwarg_inputs is a {type(kwarg_inputs).__name__}.", "a dict of inputs by name", "pass {'mask': Input(...)}"
        )
    given = list(inputs) if isinstance(inputs, (list, tuple)) else [] if inputs is None else [inputs]
    args = [_convert_leaves(value, f"inputs[{i}]") for i, value in enumerate(given)]
    kwargs = {key: _convert_leaves(value, f"kwarg_inputs[{key!r}]") for key, value in (kwarg_inputs or {}).items()}
    arguments = _by_name(args, kwargs, _parameters(model))
    counts = {len(spec.ranges) for spec in arguments.specs} - {1}
    if len(counts) > 1:
        raise SettingError(
            f"The inputs have {sorted(counts)} optimization profiles.",
            "one number of profiles for all inputs (an input with a single one has it in all)",
            "give every dynamic input the same number of profiles",
        )
    _check_names(arguments, _parameters(model))
    return arguments


def _check_names(arguments: Arguments, parameters: Sequence[str]) -> None:
    """Compares the ranges of dimensions that have one name.

    Raises:
        SettingError: They differ, or a name is no identifier.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    for where, spec in _located(arguments, parameters):
        for dim, name in spec.symbols.items():
            if not is_dimension_name(name):
                raise SettingError(
                    f"Dimension {dim} of {where} is named {name!r}.",
                    "a name of ASCII letters, digits and underscores that begins with no digit",
                    "rename the dimension",
                )
            spans = [f"{r.min[dim]}:{r.opt[dim]}:{r.max[dim]}" for r in map(spec.range, range(arguments.profiles))]
            place, others = first.setdefault(name, (f"dimension {dim} of {where}", spans))
            if spans != others:
                raise SettingError(
                    f"The {place} and dimension {dim} of {where} are both named {name!r}, and are "
                    f"{'; '.join(others)} and {'; '.join(spans)}.",
                    "one range for one name, in every profile: such dimensions always have the same size",
                    "give both the same range, or different names",
                )


def _located(arguments: Arguments, parameters: Sequence[str]) -> Iterator[tuple[str, Spec]]:
    """Every Spec, and what the caller knows it by: ``mask``, ``pair['m']``."""
    positional = [(parameters[i] if i < len(parameters) else f"inputs[{i}]", v) for i, v in enumerate(arguments.args)]
    for where, tree in (*positional, *arguments.kwargs.items()):
        for path, leaf in pytree.tree_flatten_with_path(tree, is_leaf=lambda v: isinstance(v, Spec))[0]:
            if isinstance(leaf, Spec):
                yield where + pytree.keystr(path), leaf


def _convert_leaves(tree: object, where: str) -> Any:
    return pytree.tree_map(lambda leaf: _leaf(leaf, where), tree, is_leaf=is_leaf)


def _leaf(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Spec):
        return value
    if isinstance(value, Input):
        names = {dim: name for dim, name in enumerate(value.dimension_names) if name is not None}
        return Spec(value.ranges, getattr(torch, value.dtype), name=value.name, symbols=names)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.asarray(value, order="C"))
    if isinstance(value, torch.Tensor):
        dtype_name(value.dtype)
        shape = tuple(value.shape)
        return Spec((InputRange(shape, shape, shape),), value.dtype, example=value.detach())
    if is_foreign_input(value):
        return _of_foreign(value)
    raise SettingError(
        f"{where} is a {type(value).__name__}: {str(value)[:80]}.",
        "mlflow_trt.Input, torch_tensorrt.Input, a tensor, an array, a number, a string, None, or a list, tuple or "
        "dict of these",
        "describe the input by its shape and dtype: Input((1, 3, 224, 224))",
    )


def _of_foreign(value: Any) -> Spec:
    """Reads a ``torch_tensorrt.Input``: 2.11's has neither profiles nor shared_dims."""
    if getattr(value, "is_shape_tensor", False):
        raise SettingError(
            "An input is a shape tensor (is_shape_tensor=True).",
            "ordinary inputs: the sizes of dynamic dimensions come with them",
            "let the model read x.shape instead of taking sizes as an input",
        )
    profiles = getattr(value, "profiles", None)
    shapes = profiles or [value.shape]
    ranges = tuple(
        InputRange(tuple(s["min_shape"]), tuple(s["opt_shape"]), tuple(s["max_shape"]))
        if isinstance(s, dict)
        else InputRange(tuple(s), tuple(s), tuple(s))
        for s in shapes
    )
    # torch_tensorrt.dtype has a member for every torch dtype, and `unknown` where none was given.
    name = getattr(value.dtype, "name", str(value.dtype))
    given = getattr(value, "_explicit_set_dtype", True) and name != "unknown"
    dtype = getattr(torch, dtype_name(torch_tensorrt_name(name))) if given else None
    for r in ranges:
        Input(tuple(zip(r.min, r.opt, r.max)))  # the same checks as for our own
    domain = getattr(value, "tensor_domain", None)
    spec = Spec(
        ranges,
        dtype,
        name=getattr(value, "name", None) or None,
        domain=(float(domain[0]), float(domain[1])) if domain and tuple(domain) != (0.0, 2.0) else None,
    )
    shared = getattr(value, "shared_dims", None) or {}
    # Torch-TensorRT leaves names of fixed sizes out too.
    return replace(spec, symbols={dim: name for dim, name in shared.items() if spec.dynamic[dim]})


def _parameters(model: torch.nn.Module | ExportedProgram) -> list[str]:
    """Names of the positional parameters, in order; may be shorter than the call's arguments (``*args``)."""
    if isinstance(model, ExportedProgram):
        signature = model.module_call_graph[0].signature
        names = getattr(signature, "forward_arg_names", None) if signature else None
        return list(names or [])
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]


def _by_name(args: Sequence[Any], kwargs: dict[str, Any], parameters: Sequence[str]) -> Arguments:
    """Moves inputs that name a parameter to that parameter."""
    positional: list[Any] = []
    for position, value in enumerate(args):
        name = value.name if isinstance(value, Spec) else None
        in_place = name is None or (position < len(parameters) and parameters[position] == name)
        if in_place and len(positional) == position:
            positional.append(value)
            continue
        if name is None:
            raise SettingError(
                f"Input {position} has no name, but one before it was given by name.",
                "unnamed inputs first, in the order of forward's parameters",
                "name every input after the first named one",
            )
        if name in kwargs or name in parameters[: len(positional)]:
            raise SettingError(f"The input {name!r} is given twice.", "every parameter once", "leave one out")
        if parameters and name not in parameters:
            raise SettingError(
                f"The model has no parameter {name!r}.", f"one of {', '.join(parameters)}", "correct the input's name"
            )
        kwargs = {**kwargs, name: value}
    return Arguments(tuple(positional), kwargs)


def _of_program(program: ExportedProgram) -> Arguments:
    """The inputs of a static program, as it was exported."""
    from torch.export.graph_signature import InputKind

    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    flat: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        value = values[spec.arg.name]
        if not isinstance(value, torch.Tensor):
            flat.append(getattr(spec.arg, "value", value))
            continue
        if any(not isinstance(size, int) and not size.node.expr.is_Integer for size in value.shape):
            raise SettingError(
                f"The exported program has dynamic dimensions ({spec.arg.name}: {list(map(str, value.shape))}), "
                "and convert was given no inputs.",
                "the range of every dynamic dimension",
                "pass inputs=[Input(((1, 8, 32), ...))] with (min, opt, max) for each",
            )
        shape = tuple(map(int, value.shape))
        flat.append(Spec((InputRange(shape, shape, shape),), value.dtype))
    in_spec = program.call_spec.in_spec
    args, kwargs = in_spec.unflatten(flat) if in_spec is not None else (tuple(flat), {})
    return Arguments(tuple(args), dict(kwargs))
