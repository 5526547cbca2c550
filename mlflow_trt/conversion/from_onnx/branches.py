"""An If whose condition is known becomes the branch that is taken.

PyTorch's older exporter writes one for each squeeze of a dimension that it has no size of. TensorRT can't build one
whose branches differ in rank, nor one whose other branch is not valid for the sizes that there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .constants import constants
from .graphs import inner
from .inference import inferred
from .writer import Writer

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def decided(skeleton: ModelProto) -> ModelProto:
    """A model without those Ifs of its graph that always go one way: by constants, or by sizes that are known.

    Args:
        skeleton: The model; it is not changed.
    """
    from onnx import ModelProto

    made = skeleton
    while any(node.op_type == "If" for node in made.graph.node):
        conditions = {node.input[0] for node in made.graph.node if node.op_type == "If"}
        known = constants(made, inferred(made), conditions)
        if not known:
            break
        if made is skeleton:
            made = ModelProto()
            made.CopyFrom(skeleton)
        # What a branch answers may have a shape now that decides another If.
        _take(made, known)
    return made


def _take(model: ModelProto, known: Mapping[str, np.ndarray]) -> None:
    writer = Writer(model)
    for node in model.graph.node:
        if node.op_type == "If" and node.input[0] in known:
            branch = "then_branch" if known[node.input[0]].item() else "else_branch"
            _write(node, next(attribute.g for attribute in node.attribute if attribute.name == branch), model, writer)
        else:
            writer.nodes.append(node)
    nodes = writer.nodes
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write(node: NodeProto, branch: GraphProto, model: ModelProto, writer: Writer) -> None:
    """Writes a branch in place of the If, its values under new names: other branches may have the same."""
    own = [tensor.name for tensor in branch.initializer]
    own += [name for each in branch.node for name in each.output if name]
    names = {name: writer.new(f"{node.output[0]}.{name}") for name in own}
    rename(branch, names)
    for tensor in branch.initializer:
        tensor.name = names[tensor.name]
        model.graph.initializer.append(tensor)
    for each in branch.node:
        for place, name in enumerate(each.output):
            each.output[place] = names.get(name, name)
        writer.nodes.append(each)
    for value, name in zip(branch.output, node.output):
        if name:
            writer.write("Identity", value.name, out=name)


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Reads values by other names, in a graph and in those within it."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for within in inner(node):
            own = {value.name for value in (*within.input, *within.initializer)}
            own.update(name for each in within.node for name in each.output)
            rename(within, {old: new for old, new in names.items() if old not in own})
    for value in graph.output:
        value.name = names.get(value.name, value.name)
