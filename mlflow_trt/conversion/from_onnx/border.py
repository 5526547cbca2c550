"""Inputs and outputs of a graph in the dtypes that callers see, with casts where those within are others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .graphs import inner
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def public_dtype(dtype: int) -> int:
    """What callers see of a dtype of ``TensorProto``: numpy has no bfloat16, TensorRT no float64."""
    from onnx import TensorProto

    return int(TensorProto.FLOAT) if dtype in (TensorProto.DOUBLE, TensorProto.BFLOAT16) else dtype


def bordered(model: ModelProto, public: Mapping[str, int]) -> None:
    """Casts the inputs and outputs of a model, which is changed.

    Weights that are inputs too are inputs no more: an engine has them within.

    Args:
        model: The model.
        public: The dtype of each input and output as callers see it.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    fed = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(fed)
    model.ir_version = max(model.ir_version, 4)  # the first in which weights need not be inputs
    writer = Writer(model)
    entering = {v.name: v for v in graph.input if v.type.tensor_type.elem_type != public[v.name]}
    leaving = {v.name: v for v in graph.output if v.type.tensor_type.elem_type != public[v.name]}
    if not entering and not leaving:
        return
    renamed = {name: writer.new(f"{name}.inner") for name in (*entering, *leaving)}
    for name, value in entering.items():
        writer.write("Cast", name, out=renamed[name], to=value.type.tensor_type.elem_type)
    for node in graph.node:
        rename(node, renamed)
        writer.nodes.append(node)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for name in leaving:
        writer.write("Cast", renamed[name], out=name, to=public[name])
    for name, value in (*entering.items(), *leaving.items()):
        value.type.tensor_type.elem_type = public[name]
    made = list(writer.nodes)
    del graph.node[:]
    graph.node.extend(made)


def rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Gives values that a node reads or answers, and those that its inner graphs do, other names."""
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = renamed.get(name, name)
    for graph in inner(node):
        for each in graph.node:
            rename(each, renamed)
