"""Whether an exported program holds for the sizes that the engine is to accept."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import ConversionError
from .arguments import Spec
from .program import placeholder_values
from .structure import user_inputs


def check_shapes(program: ExportedProgram, specs: Mapping[str, Spec], *, guards: bool = True) -> None:
    """Compares the dimensions that the caller wants dynamic with those that the export kept so.

    Args:
        program: The exported program.
        specs: Its inputs.
        guards: Whether the export's guards must hold at min, opt and max. Many of them only say which way the export
            took, and both ways come to the same; where there is the module itself to ask, its answers decide.

    Raises:
        ConversionError: The export fixed a dimension that is to be dynamic, left one open that is to be static, or
            holds for other sizes only.
    """
    values = placeholder_values(program)
    for name, spec in specs.items():
        for dim, size in enumerate(values[name].shape):
            low, high = spec.low[dim], spec.high[dim]
            label = f" ({spec.symbols[dim]})" if dim in spec.symbols else ""
            if (fixed := fixed_size(size)) is not None:
                if low == high == fixed:
                    continue
                wanted = f"{low} to {high}" if low != high else str(low)
                raise ConversionError(
                    f"Dimension {dim}{label} of the input {name} is fixed to {fixed} in the exported program."
                    f"{_why(program, name, dim)}",
                    f"a program that accepts {wanted} there",
                    f"write {fixed} for this dimension, or change the model (a size used as a Python number, a "
                    "constant of that size) or export it with torch.export.Dim for it",
                )
            if low == high:
                raise ConversionError(
                    f"Dimension {dim}{label} of the input {name} is dynamic in the exported program ({size}), "
                    f"and its Input says {low}.",
                    "(min, opt, max) for every dynamic dimension",
                    f"write ({low}, {low}, {low} or more) there, or export the program with a fixed size",
                )
            lower, upper = _bounds(program, size)
            # torch.export never says 1 (or 0) of a dynamic dimension, and the program accepts it nevertheless.
            if (low < lower and lower > 2) or high > upper:
                raise ConversionError(
                    f"Dimension {dim}{label} of the input {name} is to be {low} to {high}, and the exported program "
                    f"holds for {lower} to {upper if upper < 2**31 else 'any size'} only.{_why(program, name, dim)}",
                    "a range within the program's",
                    "narrow the Input's range, or change the model",
                )
    if not guards:
        return
    for profile in range(max((len(s.ranges) for s in specs.values()), default=1)):
        for point in ("min", "opt", "max"):
            sizes = {name: getattr(spec.range(profile), point) for name, spec in specs.items()}
            if (broken := _broken_guard(program, sizes)) is not None:
                shapes = ", ".join(f"{name} {list(shape)}" for name, shape in sizes.items())
                raise ConversionError(
                    f"The exported program does not hold at {point} of profile {profile} ({shapes}): "
                    f"it requires {broken}.",
                    "sizes that belong together at every min, opt and max",
                    "correct the ranges of these inputs, or change the model",
                )


def fixed_size(size: Any) -> int | None:
    """A size as a number, or None if it is dynamic; torch.export leaves fixed ones as symbols with a value."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else None


def _bounds(program: ExportedProgram, size: Any) -> tuple[float, float]:
    expression = size.node.expr
    constraints = program.range_constraints
    bounds = constraints.get(expression)
    if bounds is None:
        return 0, math.inf
    lower, upper = (int(b) if b.is_finite and b < 2**62 else math.inf for b in (bounds.lower, bounds.upper))
    if not expression.is_Symbol:
        # That no size is 1 is only torch.export's assumption, for those that this one follows from too.
        ones = {s: 1 for s in expression.free_symbols if s not in constraints or constraints[s].lower <= 2}
        least = expression.xreplace(ones)
        lower = min(lower, int(least)) if least.is_Integer else lower
    return lower, upper


def guards(program: ExportedProgram) -> Sequence[str]:
    """The conditions on sizes that the export found, as text; older releases of torch keep none."""
    return getattr(program, "_guards_code", None) or ()


def _why(program: ExportedProgram, name: str, dim: int) -> str:
    """The guards of the export that hold this dimension, in its own words."""
    source = sources(program).get(name, f"L['{name}']")
    conditions = [guard for guard in guards(program) if f"{source}.size()[{dim}]" in guard]
    return f" The export requires: {'; '.join(conditions[:3])}." if conditions else ""


def sources(program: ExportedProgram) -> dict[str, str]:
    """How the export's guards spell each input: ``L['d']['m']`` for the input d_m."""
    in_spec = program.call_spec.in_spec
    expected = user_inputs(program)
    if _is_strict(program):
        return {arg.name: f"L['flat_args'][{i}]" for i, arg in enumerate(expected)}
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or []) if signature else []
    if in_spec is None:
        return {}
    args, kwargs = in_spec.unflatten(list(range(len(expected))))
    sources: dict[str, str] = {}

    def walk(tree: Any, source: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{source}[{key!r}]")
        elif isinstance(tree, (list, tuple)):
            for key, value in enumerate(tree):
                walk(value, f"{source}[{key}]")
        elif isinstance(tree, int):
            sources[expected[tree].name] = source

    text = "\n".join(guards(program))
    for i, arg in enumerate(args):
        name = names[i] if i < len(names) else f"args_{i - len(names)}"
        # What *args takes is called args_0 in the signature, and L['args'][0] in the guards.
        variadic = re.sub(r"^(.*)_(\d+)$", r"L['\1'][\2]", name)
        walk(arg, variadic if variadic != name and f"{variadic}." in text else f"L['{name}']")
    for key, value in kwargs.items():
        walk(value, f"L['{key}']")
    return sources


def _is_strict(program: ExportedProgram) -> bool:
    """Whether Dynamo traced the program: its guards count the inputs, instead of naming them."""
    sizes = [size for value in placeholder_values(program).values() for size in getattr(value, "shape", ())]
    environment = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    spelled = (*guards(program), *(getattr(environment, "source_name_to_debug_name", None) or ()))
    return any("L['flat_args']" in text for text in spelled)


@dataclass(frozen=True)
class _Sized:
    """Stands for an input in a guard's expression."""

    shape: Sequence[int]


def requirements(program: ExportedProgram) -> dict[str, str]:
    """The export's guards on sizes, as they are kept in the program, each in terms of the inputs' names."""
    spelled = sorted(sources(program).items(), key=lambda item: -len(item[1]))
    texts: dict[str, str] = {}
    for guard in guards(program):
        text = guard
        for name, source in spelled:
            text = text.replace(f"{source}.size()", f"{name}.shape")
        texts[guard] = text
    return texts


def _broken_guard(program: ExportedProgram, sizes: Mapping[str, Sequence[int]]) -> str | None:
    """The first of the export's guards that these sizes break, in terms of the inputs' names."""
    for text in requirements(program).values():
        if holds(text, sizes):
            continue
        # A dynamic dimension is traced as if it were never 1. A guard that only 1 breaks is that assumption, which
        # PyTorch and TensorRT both do without.
        if holds(text, {name: [max(2, n) for n in shape] for name, shape in sizes.items()}) and any(
            1 in shape for shape in sizes.values()
        ):
            continue
        return text
    return None


def holds(requirement: str, sizes: Mapping[str, Sequence[int]]) -> bool:
    """Whether one of :func:`requirements` holds for these shapes; one that is on something else does."""
    try:
        names: dict[str, Any] = {name: _Sized(shape) for name, shape in sizes.items()}
        # The expression was printed by torch.export from integers; nothing of the caller's is in it.
        return bool(eval(requirement, {"__builtins__": {}, "math": math, "max": max, "min": min, "abs": abs}, names))
    except Exception:  # a guard on something else than these sizes
        return True
