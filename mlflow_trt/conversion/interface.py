"""How callers see the engine: names, dtypes and symbolic shapes of its inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch.export import ExportedProgram

from ..plan.manifest import Interface, Profile, ShapeRange, Tensor
from .arguments import Spec
from .dimensions import Symbols
from .integers import public_dtype
from .program import placeholder_values
from .structure import Output, arguments, result

_NUMPY = re.compile(r"^torch\.")


def describe(
    program: ExportedProgram,
    specs: Mapping[str, Spec],
    outputs: Sequence[Output],
    bindings: Sequence[str],
    built: Sequence[tuple[str, str, list[int]]],
    symbols: Symbols,
) -> Interface:
    """Describes an engine.

    Args:
        program: The exported program, as it was before any cast.
        specs: Its inputs.
        outputs: Those that the engine computes.
        bindings: Their names in the engine.
        built: Outputs of the network that was built: name, dtype, shape.
        symbols: What the dynamic dimensions are called.
    """
    values = placeholder_values(program)
    dtypes = {name: dtype for name, dtype, _ in built}
    inputs = tuple(
        Tensor(
            name=name,
            binding=name,
            dtype=plain(fed_dtype(spec, values[name].dtype)),
            binding_dtype=plain(fed_dtype(spec, values[name].dtype)),
            shape=symbols.shape(values[name]),
        )
        for name, spec in specs.items()
    )
    by_name = {node.name: node.meta.get("val") for node in program.graph.nodes}
    described = []
    for output, binding in zip(outputs, bindings):
        value = by_name[output.node]
        tensor = isinstance(value, torch.Tensor)
        public = plain(public_dtype(value.dtype)) if tensor else "int64"
        shape = symbols.shape(value) if tensor else ()
        described.append(
            Tensor(
                name=output.name, binding=binding, dtype=public, binding_dtype=dtypes.get(binding, public), shape=shape
            )
        )
    return Interface(
        inputs=inputs, outputs=tuple(described), arguments=arguments(program), result=result(program, outputs)
    )


def bindings(specs: Mapping[str, Spec], outputs: Sequence[Output]) -> tuple[str, ...]:
    """Names of the engine's outputs: the public ones, but where an input has the same."""
    taken = set(specs)
    names = []
    for output in outputs:
        name = output.name
        while name in taken:
            name += ".out"
        taken.add(name)
        names.append(name)
    return tuple(names)


def fed_dtype(spec: Spec, own: torch.dtype) -> torch.dtype:
    """The dtype of an input as callers give it and the engine takes it: float32 for bfloat16 and float64."""
    return public_dtype(spec.dtype or own)


def profiles(specs: Mapping[str, Spec]) -> tuple[Profile, ...]:
    """The optimization profiles, by input name."""
    count = max((len(spec.ranges) for spec in specs.values()), default=1)
    return tuple(
        {name: ShapeRange(min=(r := spec.range(i)).min, opt=r.opt, max=r.max) for name, spec in specs.items()}
        for i in range(count)
    )


def plain(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return _NUMPY.sub("", str(dtype))
