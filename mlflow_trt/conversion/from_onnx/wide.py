"""Which nodes of a graph stay in float32 because half precision would answer something else, not only less exactly."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import weights
from .kinds import VIEWS

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool")
_PHASES = frozenset((*VIEWS, "Add", "Sub", "Mul", "Div", "Neg", "Concat", "MatMul", "Einsum", "Exp", "Pow", "Where"))
_SOURCES = ("Cast", "Range", "Constant", "ConstantOfShape")
_MOST = 64
"""Nodes before a sine that are looked at."""


class Wide:
    """The nodes of a graph that stay in float32.

    - Squares that are summed: the variance of a norm that is written out. float16 ends at 65504, the square of 256.
    - What a sine or cosine is taken of, where that comes of positions (integers, inputs) and constants alone: rotary
      embeddings and those of diffusion's timesteps. Half precision has steps of a radian from 2048 on.
    """

    def __init__(self, graph: GraphProto, folder: Path | None) -> None:
        self._producers = {output: node for node in graph.node for output in node.output if output}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = {value.name for value in graph.input}
        self._folder = folder
        self._outputs: set[str] = set()
        self._tables: set[str] = set()
        for node in graph.node:
            if node.op_type in _SUMS:
                self._squares(node)
            elif node.op_type in ("Sin", "Cos"):
                self._phases(node)

    def holds(self, node: NodeProto) -> bool:
        """Whether a node stays."""
        return any(output in self._outputs for output in node.output)

    def narrow_after(self, node: NodeProto) -> bool:
        """Whether what a node answers is back in half precision: a sine, which is between -1 and 1."""
        return any(output in self._tables for output in node.output)

    def _squares(self, node: NodeProto) -> None:
        squared = self._producers.get(node.input[0])
        if squared is None:
            return
        power = squared.op_type == "Pow" and _is_two(self._constant(squared.input[1]))
        product = squared.op_type == "Mul" and squared.input[0] == squared.input[1]
        if power or product:
            self._outputs.update((squared.output[0], node.output[0]))

    def _phases(self, sine: NodeProto) -> None:
        cone: list[NodeProto] = [sine]
        todo, seen = list(sine.input), set(sine.input)
        while todo:
            name = todo.pop()
            node = self._producers.get(name)
            if node is None or node.op_type in _SOURCES:
                continue
            if node.op_type not in _PHASES or len(cone) >= _MOST or self._looks_up(node):
                return
            cone.append(node)
            read = [i for i in _numbers(node) if i and i not in seen]
            seen.update(read)
            todo += read
        for node in cone:
            self._outputs.update(node.output)
        self._tables.update(sine.output)

    def _looks_up(self, node: NodeProto) -> bool:
        """Whether a node looks rows of a weight up: an embedding is no position."""
        return node.op_type == "Gather" and node.input[0] in self._weights

    def _constant(self, name: str) -> np.ndarray | None:
        node = self._producers.get(name)
        tensor: TensorProto | None = self._weights.get(name)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value_float":
                    return np.asarray(attribute.f)
                tensor = attribute.t if attribute.HasField("t") else tensor
        return None if tensor is None or prod(tensor.dims) != 1 else weights.array(tensor, self._folder)


def _numbers(node: NodeProto) -> Sequence[str]:
    """The operands whose numbers a node's answer holds or is computed of."""
    return list(node.input[:1] if node.op_type in VIEWS else node.input)


def _is_two(value: np.ndarray | None) -> bool:
    return value is not None and value.size == 1 and float(value.reshape(())) == 2
