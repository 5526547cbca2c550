"""Nodes written anew: with names that the graph has not, and in the form that its opset asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import STANDARD
from .graphs import graphs, nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMax": 18, "ReduceL1": 18, "ReduceL2": 18, "Unsqueeze": 13, "Squeeze": 13}
"""The opset from which an operator takes its axes as an input."""


class Writer:
    """Writes what stands for a node in its place."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes: list[NodeProto] = []
        self.opset = opset(model)
        self._graph = model.graph
        self._taken = {name for node in nodes(model) for name in (*node.input, *node.output)}
        self._taken |= {v.name for g in graphs(model) for v in (*g.input, *g.output, *g.initializer)}

    def write(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Writes a node with one output.

        Args:
            operator: A standard one.
            inputs: What it reads.
            out: The name of what comes out; a new one, if there is none.
            attributes: The operator's own; ``axes`` become an input where the opset wants it.

        Returns:
            The name of what comes out.
        """
        from onnx import helper

        out = out or self.new(f"{inputs[0]}.{operator}")
        if "axes" in attributes and self.opset >= _AXES_ARE_INPUTS[operator]:
            inputs = (*inputs, self.constant(np.array(attributes.pop("axes"), np.int64)))
        self.nodes.append(helper.make_node(operator, inputs, [out], name=self.new(f"{out}.node"), **attributes))
        return out

    def constant(self, value: np.ndarray | Sequence[float]) -> str:
        """Adds a weight; what is no array becomes float32."""
        from onnx import numpy_helper

        array = value if isinstance(value, np.ndarray) else np.array(value, np.float32)
        name = self.new("constant")
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, tensor: TensorProto) -> None:
        """Adds a weight whose name is new."""
        self._graph.initializer.append(tensor)

    def new(self, wish: str) -> str:
        """A name that nothing has."""
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}.{count}"
        self._taken.add(name)
        return name


def opset(model: ModelProto) -> int:
    """The opset of the standard operators."""
    return next((o.version for o in model.opset_import if o.domain in STANDARD), 1)
