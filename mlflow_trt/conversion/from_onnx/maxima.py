"""Maxima of a product with what a convolution answered, written as clips and choices.

TensorRT-RTX 1.4.0.76 and 1.6.1.120 drop them in float32 and bfloat16, and answer the product itself, where that is
large: squeeze-and-excitation of 228 channels with a ReLU6 after it, a gated convolution with a ReLU. An absolute value
written as a choice is kept, and so is a clip by two numbers, which the parser makes one layer of.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import weights
from .kinds import ELEMENTWISE, VIEWS
from .model import OnnxModel
from .skeleton import bare
from .types import constant, dtypes
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

NAMES = frozenset(("Relu", "Clip", "Max", "Abs", "Softsign"))
"""Operators that are, or begin with, a maximum."""

_PASSED = frozenset((*NAMES, *VIEWS, "Cast", "Dropout", "Neg", "Min"))
"""What may stand between the product and the maximum: what moves numbers, and what TensorRT folds into one layer with
it. What joins several tensors (``Concat``) ends the search."""

_CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv", "ConvInteger")
_FAR = 24
"""Operators between a convolution and the product that are looked at."""


def written_out(model: OnnxModel) -> OnnxModel:
    """Writes those maxima of a graph as what TensorRT keeps; in float16 it keeps them all.

    Infinite values become the dtype's largest number.

    Args:
        model: The model, at the precision that it is built in; it stays as it is.
    """
    found = _Search(model.proto).found()
    if not found:
        return model
    made = bare(model.proto)
    made.graph.initializer.extend(model.proto.graph.initializer)
    writing = _Writing(made, model, dtypes(model.proto))
    nodes = list(made.graph.node)
    for node in nodes:
        if node.output and node.output[0] in found:
            writing.write(node)
        else:
            writing.writer.nodes.append(node)
    written = list(writing.writer.nodes)
    del made.graph.node[:]
    made.graph.node.extend(written)
    return OnnxModel(made, model.folder)


class _Search:
    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._producers = {output: node for node in model.graph.node for output in node.output if output}
        self._numbers = {tensor.name for tensor in model.graph.initializer if prod(tensor.dims) == 1}
        for node in model.graph.node:
            if node.op_type == "Constant" and ((t := constant(node)) is None or prod(t.dims) == 1):
                self._numbers.update(node.output)

    def found(self) -> set[str]:
        """The first outputs of the maxima of products."""
        maxima = (node for node in self._graph.node if node.op_type in NAMES)
        return {node.output[0] for node in maxima if any(map(self._is_product, _read(node)))}

    def _is_product(self, name: str) -> bool:
        """Whether a value is such a product, maybe moved or bounded since."""
        todo, seen = [name], {name}
        while todo:
            node = self._producers.get(todo.pop())
            if node is None:
                continue
            factors = [each for each in dict.fromkeys(_read(node)) if each not in self._numbers]
            if node.op_type == "Mul" and len(factors) > 1:
                if any(map(self._from_convolution, factors)):
                    return True
            elif node.op_type in _PASSED or node.op_type in ("Mul", "Div"):  # a product with a number too
                new = [factor for factor in factors if factor not in seen]
                seen.update(new)
                todo += new
        return False

    def _from_convolution(self, factor: str) -> bool:
        level, seen = [factor], {factor}
        for _ in range(_FAR + 1):
            nodes = [node for name in level if (node := self._producers.get(name)) is not None]
            if any(node.op_type in _CONVOLUTIONS for node in nodes):
                return True
            operands = {name for node in nodes if _elementwise(node) for name in _read(node)}
            level = list(operands - seen)
            seen |= operands
        return False


def _elementwise(node: NodeProto) -> bool:
    return node.op_type in ELEMENTWISE or node.op_type in _PASSED or node.op_type == "BatchNormalization"


def _read(node: NodeProto) -> list[str]:
    """The operands whose numbers a node's answer is made of."""
    return [name for name in (node.input[:1] if node.op_type in VIEWS else node.input) if name]


class _Writing:
    def __init__(self, made: ModelProto, model: OnnxModel, known: dict[str, int]) -> None:
        self.writer = Writer(made)
        self._model, self._known = model, known
        self._constants = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        for node in model.proto.graph.node:
            if node.op_type == "Constant" and (tensor := constant(node)) is not None:
                self._constants[node.output[0]] = tensor

    def write(self, node: NodeProto) -> None:
        """Writes a maximum in another way, or as it is where TensorRT keeps it."""
        from onnx import TensorProto

        value, out = node.input[0], node.output[0]
        self._dtype = self._known.get(value, 0)
        if self._dtype not in (TensorProto.FLOAT, TensorProto.BFLOAT16):
            self.writer.nodes.append(node)
        elif node.op_type == "Abs":
            self._absolute(value, out)
        elif node.op_type == "Softsign":
            one = self._number(1.0)
            self.writer.write("Div", value, self.writer.write("Add", self._absolute(value), one), out=out)
        elif node.op_type == "Max":
            self._largest(list(node.input), out)
        elif node.op_type == "Relu":
            self._clip(value, 0.0, weights.limit(self._dtype), out)
        else:
            self._bounded(node, value, out)

    def _absolute(self, value: str, out: str = "") -> str:
        negative = self.writer.write("Less", value, self._number(0.0))
        return self.writer.write("Where", negative, self.writer.write("Neg", value), value, out=out)

    def _largest(self, values: list[str], out: str) -> None:
        current = values[0]
        for other in values[1:]:
            current = self._larger(current, other)
        last = self.writer.nodes[-1]
        if len(values) > 1:
            last.output[0] = out
        else:
            self.writer.write("Identity", current, out=out)

    def _larger(self, one: str, other: str, out: str = "") -> str:
        less = self.writer.write("Less", one, other)
        return self.writer.write("Where", less, other, one, out=out)

    def _bounded(self, node: NodeProto, value: str, out: str) -> None:
        """A clip: of numbers, or of what comes out of other nodes."""
        given = {a.name: a.f for a in node.attribute}
        most = weights.limit(self._dtype)
        if self.writer.opset < 11:
            self._clip(value, given.get("min", -most), given.get("max", most), out)
            return
        low, high = (node.input[place] if len(node.input) > place else "" for place in (1, 2))
        numbers = [self._value(low, -most), self._value(high, most)]
        if not low:
            self.writer.nodes.append(node)  # a minimum alone
        elif numbers[0] is not None and numbers[1] is not None:
            self._clip(value, numbers[0], numbers[1], out)
        else:
            larger = self._larger(value, low, "" if high else out)
            if high:
                self.writer.write("Min", larger, high, out=out)

    def _value(self, name: str, default: float) -> float | None:
        """A bound, where it is a number."""
        if not name:
            return default
        tensor = self._constants.get(name)
        return None if tensor is None else float(weights.array(tensor, self._model.folder).reshape(()))

    def _clip(self, value: str, low: float, high: float, out: str) -> None:
        most = weights.limit(self._dtype)
        low, high = max(low, -most), min(high, most)
        if self.writer.opset < 11:
            self.writer.write("Clip", value, out=out, min=low, max=high)
        else:
            self.writer.write("Clip", value, self._number(low), self._number(high), out=out)

    def _number(self, value: float) -> str:
        from onnx import numpy_helper

        made = weights.in_dtype(numpy_helper.from_array(np.array(value, np.float32)), self._dtype, None)
        name = made.name = self.writer.new("bound")
        self.writer.add(made)
        return name
