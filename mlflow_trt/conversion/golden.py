"""What PyTorch answers at every profile point: the inputs and outputs that engines are later compared with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from ..errors import ConversionError, SettingError
from ..manifest import Dimension
from ..plan import GoldenTensors
from .arguments import Spec
from .dimensions import refuse_unequal
from .program import module_of, placeholder_values
from .structure import Output, user_inputs
from .values import synthesize

_logger = logging.getLogger(__name__)

LIMIT = 256 << 20
"""Bytes that the golden tensors of one plan may take."""

Values = dict[str, torch.Tensor]


def compute(
    program: ExportedProgram,
    specs: Mapping[str, Spec],
    outputs: Sequence[Output],
    given: Sequence[Any] | None,
    limit: int = LIMIT,
    *,
    shapes: Mapping[str, Sequence[Dimension]] | None = None,
) -> GoldenTensors:
    """Runs the program in PyTorch at min, opt and max of every profile, and at the caller's own inputs.

    Args:
        program: The exported program, as it was before any cast.
        specs: Its inputs.
        outputs: Those that the engine computes.
        given: The caller's golden inputs; their values also fill the profile points.
        limit: Bytes in all; the smallest points are kept.
        shapes: The inputs' symbolic shapes: dimensions of one symbol must have one size in the caller's inputs too.

    Raises:
        SettingError: Golden inputs don't fit the model.
        ConversionError: PyTorch itself fails at a point that the engine is to accept.
    """
    own = [_by_name(program, specs, value, i) for i, value in enumerate(given or ())]
    for i, values in enumerate(own):
        refuse_unequal(shapes or {}, {name: value.shape for name, value in values.items()}, f"golden_inputs[{i}]")
    points = [*_profile_points(specs, own[0] if own else {}), *_user_points(specs, own)]
    points = _within(points, limit)
    module = module_of(program)
    device = next((t.device for t in program.state_dict.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))
    inputs: dict[str, np.ndarray] = {}
    results: dict[str, np.ndarray] = {}
    size = 0
    for prefix, values in points:
        answered = _run(program, module, values, device, prefix)
        flat = pytree.tree_leaves(answered, is_leaf=lambda v: v is None)
        arrays = {o.name: _array(flat[o.positions[0]]) for o in outputs}
        size += sum(a.nbytes for a in arrays.values()) + sum(t.nbytes for t in values.values())
        if size > limit and inputs:
            _logger.info("Golden tensors from %s on are left out: they would exceed %d MiB.", prefix, limit >> 20)
            break
        inputs.update({f"{prefix}/{name}": _array(value) for name, value in values.items()})
        results.update({f"{prefix}/{name}": array for name, array in arrays.items()})
    return GoldenTensors(inputs, results)


def _profile_points(specs: Mapping[str, Spec], source: Values) -> Iterator[tuple[str, Values]]:
    generator = torch.Generator().manual_seed(0)
    for profile in range(max((len(s.ranges) for s in specs.values()), default=1)):
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for point in ("opt", "min", "max"):
            shapes = tuple(getattr(spec.range(profile), point) for spec in specs.values())
            if shapes in seen:
                continue
            seen.add(shapes)
            yield (
                f"{profile}.{point}",
                {
                    name: synthesize(spec, shape, generator, source.get(name))
                    for (name, spec), shape in zip(specs.items(), shapes)
                },
            )


def _user_points(specs: Mapping[str, Spec], own: Sequence[Values]) -> Iterator[tuple[str, Values]]:
    profiles = range(max((len(s.ranges) for s in specs.values()), default=1))
    for i, values in enumerate(own):
        fitting = [p for p in profiles if all(_admits(specs[n], p, v) for n, v in values.items())]
        if not fitting:
            shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in values.items())
            raise SettingError(
                f"golden_inputs[{i}] has the shapes {shapes}.",
                "shapes within one optimization profile",
                "widen the profile, or leave these inputs out",
            )
        yield f"{fitting[0]}.user{i}", values


def _admits(spec: Spec, profile: int, value: torch.Tensor) -> bool:
    r = spec.range(profile)
    return value.dim() == len(r.min) and all(lo <= n <= hi for lo, n, hi in zip(r.min, value.shape, r.max))


def _by_name(program: ExportedProgram, specs: Mapping[str, Spec], value: Any, index: int) -> Values:
    """One golden input as tensors by public name; given so, or as the model's own arguments."""
    if isinstance(value, Mapping) and set(value) == set(specs):
        return {name: _tensor(value[name], specs[name]) for name in specs}
    call = ((), dict(value)) if isinstance(value, Mapping) else (tuple(value) if _many(value) else (value,), {})
    flat = [leaf for leaf in pytree.tree_leaves(call) if leaf is not None and not isinstance(leaf, (str, bool, int))]
    if len(flat) != len(specs):
        raise SettingError(
            f"golden_inputs[{index}] holds {len(flat)} tensors.",
            f"{len(specs)}: {', '.join(specs)}",
            "give each as a dict by input name, or as the tuple of arguments that the model takes",
        )
    return {name: _tensor(leaf, spec) for (name, spec), leaf in zip(specs.items(), flat)}


def _many(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _tensor(value: Any, spec: Spec) -> torch.Tensor:
    tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return tensor.to(spec.dtype or tensor.dtype).clone()


def _within(points: list[tuple[str, Values]], limit: int) -> list[tuple[str, Values]]:
    """Leaves out the largest points, until the inputs alone are within the limit."""
    order = sorted(points, key=lambda p: sum(v.nbytes for v in p[1].values()))
    kept: set[str] = set()
    size = 0
    for prefix, values in order:
        size += sum(v.nbytes for v in values.values())
        if size > limit and kept:
            _logger.info("Golden inputs at %s are left out: they would exceed %d MiB.", prefix, limit >> 20)
            continue
        kept.add(prefix)
    return [point for point in order if point[0] in kept]


def _run(program: ExportedProgram, module: torch.nn.Module, values: Values, device: torch.device, prefix: str) -> Any:
    expected = placeholder_values(program)
    flat: list[Any] = []
    for arg in user_inputs(program):
        if isinstance(arg, TensorArgument):
            flat.append(values[arg.name].to(device, expected[arg.name].dtype))
        else:
            flat.append(arg.value)
    in_spec = program.call_spec.in_spec
    args, kwargs = in_spec.unflatten(flat) if in_spec is not None else (tuple(flat), {})
    with torch.no_grad(), _exact():
        try:
            return module(*args, **kwargs)
        except Exception as error:
            profile, point = prefix.split(".", 1)
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ConversionError(
                f"PyTorch itself fails at {point} of profile {profile} ({shapes}): {type(error).__name__}: "
                f"{str(error).strip()[:400]}",
                "a model that runs at every size that the engine is to accept",
                "correct the ranges, or give golden_inputs with values that the model accepts (indices, say)",
            ) from error


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """float32 means float32 on a GPU too."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float64):
        value = value.float()
    return np.asarray(value.numpy(), order="C")  # np.ascontiguousarray would give a scalar a dimension
