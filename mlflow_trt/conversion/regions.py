"""The program without regions of its own: what ``torch.autocast`` or ``torch.enable_grad`` wrapped becomes plain steps.

torch.export keeps such a region as a graph within the graph, whose casts happen only when it runs. Written out, they
are casts like any other, and TensorRT gets the types that PyTorch computes in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch.export import ExportedProgram
from torch.fx import Node

from .._torch import HigherOrderOperator, OpOverload
from ..errors import ConversionError
from . import maxima
from .integers import narrow
from .operators import operator_name, written_operands
from .structure import Output, user_outputs

_REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "hints_wrapper")


def written_out(program: ExportedProgram, outputs: Sequence[Output]) -> tuple[ExportedProgram, Sequence[Output]]:
    """Writes a program's regions out; a program without them comes back as it is.

    Writes in place are written out too, where they go into a part of a tensor (Torch-TensorRT's own way fails where
    another dimension is dynamic), where they are a maximum that becomes a choice, or where integers are held in another
    dtype and wrapped after each operation.

    Raises:
        ConversionError: PyTorch can't do it.
    """
    nodes = list(program.graph.nodes)
    narrows = any(narrow(node.meta.get("val")) for node in nodes)
    if not any(_is_region(node) or _writes(node, anywhere=narrows) for node in nodes):
        return program, outputs
    plain = functional(program)
    flat = user_outputs(plain)
    return plain, [replace(output, node=flat[output.positions[0]].name) for output in outputs]


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program with neither regions nor writes in place; its signature names what it mutates.

    Raises:
        ConversionError: PyTorch can't do it.
    """
    with _without_gradients(program):
        try:
            written: ExportedProgram = program.run_decompositions({})
            return written
        except Exception as error:
            raise ConversionError(
                f"PyTorch can't write the program's regions out: {type(error).__name__}: {str(error).strip()[:400]}",
                "a program that ExportedProgram.run_decompositions({}) takes",
                "take torch.autocast, torch.enable_grad and writes in place out of the model's code",
            ) from error


@contextlib.contextmanager
def _without_gradients(program: ExportedProgram) -> Iterator[None]:
    """Gradients off inside the program's regions: where one ends it, PyTorch would look for a backward pass."""
    graphs = [getattr(module, "graph", None) for module in program.graph_module.modules()]
    nodes = [node for graph in graphs if graph is not None for node in graph.nodes]
    enabling = [(node, node.args) for node in nodes if _name(node) == "wrap_with_set_grad_enabled"]
    try:
        for node, args in enabling:
            node.args = (False, *args[1:])
        yield
    finally:
        for node, args in enabling:
            node.args = args


def _is_region(node: Node) -> bool:
    return _name(node) in _REGIONS


def _name(node: Node) -> str:
    return str(node.target.name()) if isinstance(node.target, HigherOrderOperator) else ""  # type: ignore[no-untyped-call]


def _writes(node: Node, anywhere: bool) -> bool:
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return False
    into = written_operands(node.target, node.args)
    return anywhere or maxima.of_product(node) or any(operator_name(n) in ("slice", "select") for n in into)
