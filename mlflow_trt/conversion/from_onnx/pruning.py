"""What nothing reads any more, left out: nodes that only led to what was replaced, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graphs import used

if TYPE_CHECKING:
    from onnx import ModelProto


def prune(model: ModelProto) -> bool:
    """Leaves out the nodes of a graph that no output depends on, and the weights that none of the others reads.

    Returns:
        Whether there were any.
    """
    graph = model.graph
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):  # the order of a graph is one in which it can be computed
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(used(node))
    nodes = kept[::-1]
    weights = [tensor for tensor in graph.initializer if tensor.name in wanted]
    if len(nodes) == len(graph.node) and len(weights) == len(graph.initializer):
        return False
    left = {tensor.name for tensor in graph.initializer} - wanted
    inputs = [value for value in graph.input if value.name not in left]  # what had a default need not be fed
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return True
