"""The program without regions of its own: what ``torch.autocast`` or ``torch.enable_grad`` wrapped becomes plain steps.

torch.export keeps such a region as a graph within the graph, whose casts happen only when it runs. Written out, they are
casts like any other, and TensorRT gets the types that PyTorch computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..errors import ConversionError
from .integers import narrow
from .structure import Output, user_outputs

_REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "hints_wrapper")


def written_out(program: ExportedProgram, outputs: Sequence[Output]) -> tuple[ExportedProgram, Sequence[Output]]:
    """Writes a program's regions out; a program without them comes back as it is.

    Integers that the network holds in another dtype are wrapped after each operation, which writes in place would
    escape: these too are written out.

    Raises:
        ConversionError: PyTorch can't do it.
    """
    nodes = list(program.graph.nodes)
    narrows = any(narrow(node.meta.get("val")) for node in nodes)
    if not any(_is_region(node) or (narrows and _writes(node)) for node in nodes):
        return program, outputs
    try:
        plain = program.run_decompositions({})
    except Exception as error:
        raise ConversionError(
            f"PyTorch can't write the program's regions out: {type(error).__name__}: {str(error).strip()[:400]}",
            "a program that ExportedProgram.run_decompositions({}) takes",
            "take torch.autocast and writes in place out of the model's code",
        ) from error
    flat = user_outputs(plain)
    return plain, [replace(output, node=flat[output.positions[0]].name) for output in outputs]


def _is_region(node: Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator) and node.target.name() in _REGIONS


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
