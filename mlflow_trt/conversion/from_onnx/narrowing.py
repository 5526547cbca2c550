"""A float32 graph rewritten to compute in half precision, node by node, with the casts that it then needs.

- Inputs, weights and what only moves their numbers are free: they have no dtype of their own, but are brought to that
  of who reads them, from float32. So the epsilon of a norm that is computed in float32 stays exact.
- What carries the arithmetic (:data:`.kinds.ARITHMETIC`) computes in half precision, unless all that it reads was
  made float32 by the graph itself.
- Numbers that only sizes decide (a scale by the root of a width) are computed in float32, and so is what is scaled by
  them, but not what follows.
- Any other operator computes in float32 where it reads a float32 value (one that the graph casts to float32 itself,
  say, of integers, or of a norm's variance), as PyTorch promotes; else in half precision.
- Operators that are not there in half precision, and those of :mod:`.wide`, compute in float32.
- The graphs within If, Loop and Scan keep their dtypes, with casts around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import weights
from .cast_graph import CastGraph
from .graphs import inner, used
from .kinds import (
    ARITHMETIC,
    ELEMENTWISE,
    IN_FLOAT32,
    PARAMETERS,
    PEEPHOLES,
    PRODUCTS,
    QUANTIZERS,
    RANDOM,
    SHAPES,
    VIEWS,
    WITHOUT_HALF,
)
from .schemas import Schema, schema
from .types import STANDARD, answered, constant, dtypes
from .wide import Wide

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def narrowed(model: ModelProto, dtype: int, folder: Path | None) -> tuple[ModelProto, tuple[str, ...]]:
    """Rewrites a graph.

    Args:
        model: A model of float32 and of the half precision that is asked for, and no other floating dtype that is
            computed in; it stays as it is.
        dtype: FLOAT16 or BFLOAT16 of ``TensorProto``.
        folder: Where weights lie that lie in files.

    Returns:
        The new model, and the arithmetic that stays in float32.
    """
    narrowing = _Narrowing(model, dtype, folder)
    return narrowing.run(), tuple(narrowing.kept)


class _Narrowing:
    def __init__(self, model: ModelProto, dtype: int, folder: Path | None) -> None:
        from onnx import TensorProto

        self.model, self.folder = model, folder
        self.graph = CastGraph(model, dtype, folder)
        self.half, self.single = dtype, self.graph.single
        self.wide = Wide(model.graph, folder)
        self.kept: list[str] = []
        self.constant = {tensor.name for tensor in model.graph.initializer}
        """Values that no input's numbers decide, only its sizes."""
        self.sizes: set[str] = set()
        """Free values that are numbers computed of sizes, which half precision may be too small for."""
        self.fed = {value.name for value in model.graph.input}
        """Inputs, and free values that are computed of them."""
        self.lacking = WITHOUT_HALF["float16" if dtype == TensorProto.FLOAT16 else "bfloat16"]
        self.own: dict[str, int] | None = None

    def run(self) -> ModelProto:
        for node in self.model.graph.node:
            self._node(node)
        return self.graph.finished()

    def _node(self, node: NodeProto) -> None:
        if self._is_constant(node):
            self.constant.update(node.output)
        if node.op_type == "Constant" and (tensor := constant(node)) is not None:
            if tensor.data_type in (self.single, self.half):
                self.graph.free[node.output[0]] = tensor
                return
        elif node.op_type in VIEWS and node.input[0] in self.graph.free and not self._looks_up(node):
            self._free(node, node)
            return
        if node.op_type in ("Cast", "CastLike"):
            self._cast_node(node)
            return
        known = schema(node.op_type, self.graph.opset) if node.domain in STANDARD else None
        if known is None or any(True for _ in inner(node)):
            self._whole(node)
            return
        if node.op_type == "BatchNormalization":
            node = self._merged(node)
        computed = [i for i, name in enumerate(node.input) if self.graph.is_floating(name)]
        if computed and self._is_free(node):
            self._free(node, node)
            return
        self._emit(node, self._operands(node, known, computed))

    def _free(self, node: NodeProto, source: NodeProto) -> None:
        """Keeps a node for who reads it."""
        name = node.output[0]
        self.graph.free[name] = source
        if self.sizes.intersection(node.input) and node.op_type not in ("Sin", "Cos"):
            self.sizes.add(name)
        if self.fed.intersection(node.input):
            self.fed.add(name)

    def _merged(self, node: NodeProto) -> NodeProto:
        """A batch norm by a factor and an addend, made of float32: half precision may not hold a variance."""
        from onnx import NodeProto, TensorProto

        tensors = [self.graph.free.get(name) for name in node.input[1:5]]
        known = [tensor for tensor in tensors if isinstance(tensor, TensorProto)]
        if len(known) != 4 or len(node.output) != 1:
            return node
        copy = NodeProto()
        copy.CopyFrom(node)
        scale, bias, mean, variance = (weights.array(tensor, self.folder).astype(np.float64) for tensor in known)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        values = (factor, bias - mean * factor, np.zeros_like(mean), np.ones_like(mean))
        for place, value in enumerate(values, 1):
            copy.input[place] = self.graph.new_weight(f"{node.input[place]}.merged", value)
        kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
        del copy.attribute[:]
        copy.attribute.extend(kept)
        copy.attribute.add(name="epsilon", f=0.0, type=1)
        return copy

    def _is_constant(self, node: NodeProto) -> bool:
        if node.op_type in RANDOM or any(True for _ in inner(node)):
            return False
        return node.op_type in SHAPES or all(name in self.constant for name in node.input if name)

    def _is_free(self, node: NodeProto) -> bool:
        """Whether a node is computed in float32 for who reads it: of constants, or of inputs, place by place.

        So what prepares raw inputs (a mean subtracted, a division by 255) does not round them first.
        """
        if len(node.output) != 1 or node.op_type in (*ARITHMETIC, *QUANTIZERS, *SHAPES):
            return False
        read = [self.single if name in self.graph.free else self.graph.dtype(name) for name in node.input]
        if answered(node, read, self.graph.opset) != [self.single]:
            return False
        if self._is_constant(node):
            return True
        floating = [name for name in node.input if self.graph.is_floating(name)]
        free = all(name in self.graph.free for name in floating) and bool(self.fed.intersection(floating))
        return free and (node.op_type in ELEMENTWISE or node.op_type == "BatchNormalization")

    def _looks_up(self, node: NodeProto) -> bool:
        """Whether a node reads rows of a weight by indices that are computed: what comes of it is no weight."""
        return node.op_type == "Gather" and node.input[0] in self.constant and node.input[1] not in self.constant

    def _operands(self, node: NodeProto, known: Schema, computed: Sequence[int]) -> dict[int, int]:
        """The dtype that each floating operand of a node is to have."""
        fixed = {
            place for place in computed if (node.op_type, place) in PARAMETERS or self._is_fixed(node, known, place)
        }
        group = [place for place in computed if place not in fixed]
        dtype = self._computes_in(node, known, group)
        return {place: self.single if place in fixed else dtype for place in computed}

    def _is_fixed(self, node: NodeProto, known: Schema, place: int) -> bool:
        """Whether an operand is float32 by the schema; scales were, before quantizers came in half precision."""
        return known.operand(place) == "tensor(float)" and node.op_type not in QUANTIZERS

    def _computes_in(self, node: NodeProto, known: Schema, group: Sequence[int]) -> int:
        names = [node.input[place] for place in group]
        if node.op_type in IN_FLOAT32 or self.wide.holds(node) or not self._is_there(node, known, group):
            return self.single
        if node.op_type in QUANTIZERS and not self._scales_fit(node.input[1]):
            return self.single
        given = [self.graph.dtype(name) for name in names if name not in self.graph.free]
        if node.op_type in ARITHMETIC:
            return self.single if given and len(given) == len(names) and set(given) == {self.single} else self.half
        return self.single if self.single in given or self.sizes.intersection(names) else self.half

    def _is_there(self, node: NodeProto, known: Schema, group: Sequence[int]) -> bool:
        """Whether TensorRT has an operator in half precision."""
        operator, place = PEEPHOLES
        if node.op_type == operator and len(node.input) > place and node.input[place]:
            return False
        return node.op_type not in self.lacking and all(known.takes(place, self.half) for place in group)

    def _scales_fit(self, name: str) -> bool:
        """Whether the scales of a quantizer are normal numbers in half precision."""
        from onnx import TensorProto

        tensor = self.graph.free.get(name)
        if self.half != TensorProto.FLOAT16 or not isinstance(tensor, TensorProto):
            return True
        values = np.abs(weights.array(tensor, self.folder).astype(np.float64))
        return not np.any(values < float(np.finfo(np.float16).tiny)) and not np.any(values > weights.limit(self.half))

    def _emit(self, node: NodeProto, operands: Mapping[int, int]) -> None:
        from onnx import NodeProto

        copy = NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if node.op_type in SHAPES:
                copy.input[place] = self.graph.there(name)
            elif place in operands:
                copy.input[place] = self.graph.read(name, operands[place])
            elif name:
                copy.input[place] = self.graph.any(name)
        read = [self.graph.dtype_here(name) for name in copy.input]
        self.graph.add(node, copy, answered(node, read, self.graph.opset))
        if self._narrows_after(node):
            for name in node.output:
                self.graph.narrow(name)
        if node.op_type in ARITHMETIC and set(operands.values()) == {self.single}:
            self._keep(node)

    def _narrows_after(self, node: NodeProto) -> bool:
        """Whether what follows a node that computes in float32 computes in half precision again."""
        if self.wide.narrow_after(node):
            return True
        aside = node.op_type in self.lacking or any(name in self.sizes for name in node.input)
        return aside and not any(self.graph.dtype(name) == self.single for name in node.input)

    def _cast_node(self, node: NodeProto) -> None:
        """A cast of the graph itself: one to float32 stays; one to half precision says what is done anyway."""
        from onnx import AttributeProto, NodeProto

        name = node.input[0]
        if node.op_type == "CastLike":
            to = self.graph.dtype(node.input[1]) or self.half
        else:
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        free = name in self.graph.free
        if (free and to == self.half) or (name in self.sizes and to == self.single):
            self._free(node, self._moved(node))
        elif name in self.constant and not free and to in (self.single, self.half):
            self.graph.free[node.output[0]] = self._to_float32(node)
            self.sizes.add(node.output[0])
        else:
            copy = NodeProto(op_type="Cast", name=node.name, input=[self.graph.any(name)], output=node.output)
            copy.attribute.add(name="to", i=to, type=AttributeProto.INT)
            self.graph.add(node, copy, [to])

    def _moved(self, node: NodeProto) -> NodeProto:
        """A node that answers what it reads."""
        from onnx import helper

        return helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name)

    def _to_float32(self, node: NodeProto) -> NodeProto:
        from onnx import helper

        return helper.make_node("Cast", node.input[:1], node.output[:1], name=node.name, to=self.single)

    def _whole(self, node: NodeProto) -> None:
        """A node whose dtypes stay: one with graphs of its own, or of an operator that nothing is known of."""
        from onnx import NodeProto

        copy = NodeProto()
        copy.CopyFrom(node)
        reads = dict.fromkeys((*(name for name in node.input if name), *_captured(node)))
        renamed = {name: self._in_own(name) for name in reads if self.graph.holds(name)}
        _rename(copy, renamed)
        self.graph.add(node, copy, [self._own(name) for name in node.output])
        for graph in inner(node):
            for each in _inner_nodes(graph):
                if each.op_type in ARITHMETIC:
                    self._keep(each)

    def _keep(self, node: NodeProto) -> None:
        self.kept += [node.name or node.output[0]] * PRODUCTS.get(node.op_type, 1)

    def _in_own(self, name: str) -> str:
        if not self.graph.is_floating(name):
            return self.graph.any(name)
        return self.graph.read(name, self._own(name) or self.single)

    def _own(self, name: str) -> int | None:
        """The dtype of a value in the graph as it was."""
        if self.own is None:
            self.own = dtypes(self.model)
        return self.own.get(name)


def _captured(node: NodeProto) -> Iterable[str]:
    """What the graphs of a node take from the one around them."""
    own = set(node.input)
    return (name for name in used(node) if name not in own)


def _inner_nodes(graph: GraphProto) -> Iterable[NodeProto]:
    for node in graph.node:
        yield node
        for each in inner(node):
            yield from _inner_nodes(each)


def _rename(node: NodeProto, renamed: dict[str, str]) -> None:
    for place, name in enumerate(node.input):
        node.input[place] = renamed.get(name, name)
    for graph in inner(node):
        for each in graph.node:
            _rename(each, renamed)
