"""Whether an exported program answers as the module it was exported from, and what is said where it does not.

The engine is built from the program. Whatever the export lost, an ``if`` on a size above all, no comparison of the
engine with the program would find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from ..errors import ConversionError
from ..plan.manifest import Tolerance
from ..plan.parity import NOT_FINITE, compare
from .arguments import Spec
from .operators import dtypes_of
from .points import Point, shapes_text

# The same operations on the same processor: what is left is another kernel for the same product (attention's masks and
# layouts). A lost branch differs by whole values.
_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDING_OF_FLOAT32 = 1e-3


@dataclass(frozen=True)
class Difference:
    """Where a program answers otherwise than its module."""

    point: Point
    what: str


def rounding(program: ExportedProgram) -> float:
    """The relative L2 error that two ways of computing a program may have, by the narrowest dtype in it."""
    dtypes = {dtype for node in program.graph.nodes for dtype in dtypes_of(node.meta.get("val"))}
    return max((_ROUNDING[dtype] for dtype in dtypes if dtype in _ROUNDING), default=_ROUNDING_OF_FLOAT32)


def differs(
    module: Sequence[Any],
    program: Sequence[Any],
    names: Mapping[int, str],
    array: Callable[[Any], np.ndarray],
    rel: float,
) -> str | None:
    """How the flat answers of a program differ from its module's, in words; None: they agree.

    Args:
        module: What the module answered: tensors, numbers, strings, None.
        program: What the program answered.
        names: Names of answers by position, where they have one.
        array: Brings a tensor to numpy.
        rel: What relative L2 error is rounding.
    """
    if len(module) != len(program):
        return f"{len(program)} values in place of {len(module)}"
    for position, (wanted, got) in enumerate(zip(module, program)):
        name = names.get(position, f"output{position}")
        if not isinstance(wanted, torch.Tensor) and not isinstance(got, torch.Tensor):
            numbers = isinstance(wanted, float) and isinstance(got, int | float)
            if wanted != got and not (numbers and np.isclose(got, wanted, rel, equal_nan=True)):
                return f"{name} is {got!r:.40} in place of {wanted!r:.40}"
            continue
        first, second = (array(torch.view_as_real(v) if _complex(v) else v) for v in (wanted, got))
        if first.shape != second.shape and first.size == second.size == 1:
            second = second.reshape(first.shape)
        if first.shape != second.shape:
            return f"{name} has the shape {list(second.shape)} in place of {list(first.shape)}"
        (figures,) = compare({name: first}, {name: second}, Tolerance(rel_l2=rel, cosine=-1.0))
        if first.dtype.kind in "biu":
            share = 1.0 if figures.top1 is None else figures.top1
            if share < 1.0 - 10 * rel:
                return f"{name} differs in {1 - share:.0%} of its entries"
        elif figures.rel_l2 > rel:
            size = "is not finite on one side" if figures.rel_l2 >= NOT_FINITE else f"rel L2 {figures.rel_l2:.2g}"
            return f"{name}: {size}"
    return None


def refuse(differences: Sequence[Difference], agreeing: Sequence[Point], specs: Mapping[str, Spec]) -> None:
    """Refuses a program that differs from its module.

    Raises:
        ConversionError: There is a difference; the message says at which sizes.
    """
    if not differences:
        return
    lines = "\n".join(f"  {shapes_text(d.point)} ({d.point.name}): {d.what}" for d in differences)
    guilty = list(_guilty(differences, agreeing, specs))
    differs = f"The exported program, which the engine is built from, answers otherwise than the model itself:\n{lines}"
    if not guilty:
        raise ConversionError(
            differs,
            "a program that answers as the model does",
            "look for Python code that torch.export runs once and keeps: a condition on a value or on "
            "torch.compiler.is_exporting(), a number or random tensor made in forward; write it as tensor operations "
            "(torch.where, torch.cond)",
        )
    described = "; ".join(
        f"dimension {dim} of {name}: other answers at {_listed(wrong)}, the same at {_listed(right)}"
        for name, dim, wrong, right in guilty
    )
    name, dim, wrong, right = guilty[0]
    kept = f"from {min(right)} on" if min(right) > max(wrong) else f"up to {max(right)}"
    one_side = min(right) > max(wrong) or max(right) < min(wrong)
    ranges = f"convert for sizes on one side ({name}, dimension {dim}: {kept}), or " if one_side else ""
    raise ConversionError(
        f"{differs}\nThe model's code depends on a size ({described}).",
        "the same operations at every size within the profiles: torch.export keeps one branch",
        f"{ranges}write the branch as tensor operations (torch.where, torch.cond); where the sizes are multiples, "
        "pass a program exported with 32 * torch.export.Dim('n')",
    )


def refuse_random(module: str, point: Point, what: str) -> None:
    """Refuses a model that answers the same inputs differently.

    Raises:
        ConversionError: Always.
    """
    raise ConversionError(
        f"The {module} answers the same inputs differently from call to call ({shapes_text(point)}: {what}).",
        "a model whose answers depend on its inputs alone",
        "take random operations out of forward (torch.rand, dropout with training=True), or pass the random numbers "
        "as an input; where an input points into other tensors (indices, boxes), give golden_inputs with real values: "
        "those that were made up may lead out of them, to whatever the memory holds there",
    )


def _guilty(
    differences: Sequence[Difference], agreeing: Sequence[Point], specs: Mapping[str, Spec]
) -> list[tuple[str, int, list[int], list[int]]]:
    """Dimensions whose size tells the differing points from the others: (input, dimension, differing, agreeing)."""
    differing: list[tuple[str, int, list[int], list[int]]] = []
    for name, spec in specs.items():
        for dim, dynamic in enumerate(spec.dynamic):
            wrong = sorted({d.point.shapes[name][dim] for d in differences})
            right = sorted({p.shapes[name][dim] for p in agreeing})
            if dynamic and right and not set(wrong) & set(right) and all(f[2:] != (wrong, right) for f in differing):
                differing.append((name, dim, wrong, right))
    return differing


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _complex(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_complex()
