"""Where a network leaves the range of float16: the first layer whose values grow too large, or vanish.

Told by one run in the model's own precision on the CPU, of the nodes that the converted program computes in float16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Interpreter, Node

from .._torch import pytree
from ..plan.files import GoldenTensors
from ..plan.manifest import Interface
from .operators import CASTS, VIEWS, operator_name
from .precision import prepare
from .program import module_of, placeholder_values
from .structure import computed_outputs, user_inputs

_LARGEST = torch.finfo(torch.float16).max
_SMALLEST = 2.0**-24
_MASK_STAYS = frozenset({*VIEWS, *CASTS, "cat"})
"""Operations beside elementwise ones that make a mask of a mask."""


@dataclass(frozen=True)
class Excess:
    """A layer whose values float16 can't hold."""

    layer: str
    """``features.3 (Linear)``, or the operator's name where no module of its own computes it."""
    operator: str
    largest: float
    """Its largest magnitude."""

    def __str__(self) -> str:
        if self.largest > _LARGEST:
            return f"{self.layer} ({self.operator}) reaches {self.largest:.3g}, and float16 ends at 65504"
        return f"{self.layer} ({self.operator}) gives at most {self.largest:.3g}, which float16 holds as zero"


REMEDY = 'convert with precision="bf16", which has the range of float32'


def half_nodes(program: ExportedProgram) -> frozenset[str]:
    """Names of the nodes of a converted program that are float16; the nodes of the original have the same names."""
    return frozenset(
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and getattr(node.meta.get("val"), "dtype", None) == torch.float16
    )


def explain(program: ExportedProgram, interface: Interface, golden: GoldenTensors) -> list[str]:
    """What float16 can't hold of a program that was converted with it, one sentence each, with what to do.

    Args:
        program: The exported program, as it was before any cast.
        interface: The engine's.
        golden: Inputs; those of an opt are used.
    """
    outputs = computed_outputs(program, [t.name for t in interface.outputs])
    fed = {t.name: getattr(torch, t.binding_dtype) for t in interface.inputs}
    return sentences(program, half_nodes(prepare(program, outputs, torch.float16, fed).program), golden)


def sentences(program: ExportedProgram, half: frozenset[str], golden: GoldenTensors) -> list[str]:
    """As :func:`explain`, with the names of the nodes that are float16."""
    points = sorted(golden.points(), key=lambda point: point[1] != "opt")
    excesses = beyond_half(program, points[0][2], half) if points else []
    return [f"In float16 {excess}: {REMEDY}." for excess in excesses]


def beyond_half(
    program: ExportedProgram, inputs: Mapping[str, np.ndarray], half: frozenset[str] | None = None
) -> list[Excess]:
    """Runs a program and tells the first layer that overflows float16, and the first that vanishes in it.

    Additive masks, such as float32's minimum, are no overflow: conversion brings them to float16's own.

    Args:
        program: The exported program, as it was before any cast.
        inputs: Arrays by input name.
        half: Names of the nodes that are float16 in the engine; None: all.
    """
    interpreter = _RangeInterpreter(module_of(program), half)
    expected = placeholder_values(program)
    device = next((t.device for t in program.state_dict.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))
    flat: list[Any] = [
        torch.from_numpy(np.array(inputs[arg.name])).to(device, expected[arg.name].dtype)
        if isinstance(arg, TensorArgument)
        else arg.value
        for arg in user_inputs(program)
    ]
    with torch.no_grad():
        interpreter.run(*flat, enable_io_processing=False)
    return [excess for excess in (interpreter.overflow, interpreter.underflow) if excess is not None]


class _RangeInterpreter(Interpreter):
    """Looks at every value on its way."""

    def __init__(self, module: torch.nn.Module, half: frozenset[str] | None) -> None:
        super().__init__(module)
        self.half = half
        self.masks: set[Node] = set()
        self.overflow: Excess | None = None
        self.underflow: Excess | None = None

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function":
            return value
        if self._is_mask(n, value):
            self.masks.add(n)
        elif self.half is None or n.name in self.half:
            for tensor in pytree.tree_leaves(value):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                    self._note(n, tensor)
        return value

    def _is_mask(self, node: Node, value: Any) -> bool:
        """Whether a value comes of a negative number beyond float16, by elementwise operations and views."""
        if (
            isinstance(value, torch.Tensor)
            and value.numel()
            and any(
                type(number) is float and (number < -_LARGEST or (number > _LARGEST and bool((value <= 0).all())))
                for number in pytree.tree_leaves((node.args, dict(node.kwargs)))
            )
        ):
            return True
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) or operator_name(node) in _MASK_STAYS
        return pointwise and any(operand in self.masks for operand in node.all_input_nodes)

    def _note(self, node: Node, tensor: torch.Tensor) -> None:
        largest = float(tensor.abs().max())
        if self.overflow is None and _LARGEST < largest < np.inf:
            self.overflow = _excess(node, largest)
        if self.underflow is None and 0.0 < largest < _SMALLEST:
            self.underflow = _excess(node, largest)


def _excess(node: Node, largest: float) -> Excess:
    modules: Sequence[Any] = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = modules[-1] if modules and isinstance(modules[-1], tuple) else ("", "")
    path = path.removeprefix("L['self'].")
    kind = (kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rsplit(".", 1)[-1]
    name = operator_name(node)
    return Excess(
        f"the layer {path}" if path else f"the model's own {node.name}", f"{kind}, {name}" if path else name, largest
    )
