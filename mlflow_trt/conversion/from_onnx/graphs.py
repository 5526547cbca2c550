"""A way through a model's graphs: those within If, Loop and Scan, and those of its functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node: of the graph, of those within it, and of the model's functions."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def inner(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that are attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The model's graph, and every graph that is an attribute of a node."""
    yield model.graph
    for node in nodes(model):
        yield from inner(node)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model holds: weights, dense and sparse, and constants."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)


def where(node: NodeProto) -> str:
    """What a message calls a node: its operator, and its name or first output."""
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = node.name or next((output for output in node.output if output), "")
    return f"{operator} at {name}" if name else operator


def used(node: NodeProto) -> Iterator[str]:
    """The values that a node reads, those that its inner graphs take from around them too."""
    yield from (name for name in node.input if name)
    for graph in inner(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {output for each in graph.node for output in each.output}
        reads = (name for each in graph.node for name in used(each))
        yield from (name for name in (*reads, *(value.name for value in graph.output)) if name not in own)


def _nodes(own: object) -> Iterator[NodeProto]:
    for node in own:  # type: ignore[attr-defined]
        yield node
        for graph in inner(node):
            yield from _nodes(graph.node)
