"""How callers see the engine: names, dtypes and symbolic shapes of its inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from ..manifest import Dimension, Interface, Profile, ShapeRange, Tensor
from .arguments import Spec
from .integers import public_dtype
from .program import placeholder_values
from .shapes import fixed_size
from .structure import Output, arguments, result

_NUMPY = re.compile(r"^torch\.")


def describe(
    program: ExportedProgram,
    specs: Mapping[str, Spec],
    outputs: Sequence[Output],
    bindings: Sequence[str],
    built: Sequence[tuple[str, str, list[int]]],
) -> Interface:
    """Describes an engine.

    Args:
        program: The exported program, as it was before any cast.
        specs: Its inputs.
        outputs: Those that the engine computes.
        bindings: Their names in the engine.
        built: Outputs of the network that was built: name, dtype, shape.
    """
    values = placeholder_values(program)
    symbols = _Symbols(specs, values)
    dtypes = {name: dtype for name, dtype, _ in built}
    inputs = tuple(
        Tensor(
            name=name,
            binding=name,
            dtype=plain(fed_dtype(spec, values[name].dtype)),
            binding_dtype=plain(fed_dtype(spec, values[name].dtype)),
            shape=tuple(symbols.of(size) for size in values[name].shape),
        )
        for name, spec in specs.items()
    )
    by_name = {node.name: node.meta.get("val") for node in program.graph.nodes}
    described = []
    for output, binding in zip(outputs, bindings):
        value = by_name[output.node]
        tensor = isinstance(value, torch.Tensor)
        public = plain(public_dtype(value.dtype)) if tensor else "int64"
        shape = tuple(symbols.of(size) for size in value.shape) if tensor else ()
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


class _Symbols:
    """Readable names for the export's symbols: the caller's own, ``batch``, or ``s0``, ``s1``, … in order."""

    def __init__(self, specs: Mapping[str, Spec], values: Mapping[str, Any]) -> None:
        self.names: dict[Any, str] = {}
        found: list[Any] = []
        for name, spec in specs.items():
            for dim, size in enumerate(values[name].shape):
                if fixed_size(size) is not None:
                    continue
                expression = size.node.expr
                if expression.is_Symbol and dim in spec.symbols:
                    self._name(expression, spec.symbols[dim])
                elif expression.is_Symbol and dim == 0 and not found:
                    self._name(expression, "batch")
                found += sorted(expression.free_symbols, key=str)
        for symbol in found:
            self._number(symbol, "s")

    def of(self, size: Any) -> Dimension:
        """A number for a fixed size, an expression in the symbols for a dynamic one."""
        if (fixed := fixed_size(size)) is not None:
            return fixed
        import sympy  # type: ignore[import-untyped]

        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            self._number(symbol, "u")
        renamed = expression.xreplace({s: sympy.Symbol(n, integer=True) for s, n in self.names.items()})
        return str(renamed)

    def _name(self, symbol: Any, name: str) -> None:
        if symbol not in self.names and name not in self.names.values():
            self.names[symbol] = name

    def _number(self, symbol: Any, letter: str) -> None:
        number = 0
        while symbol not in self.names:
            self._name(symbol, f"{letter}{number}")
            number += 1
