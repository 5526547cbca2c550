"""A float32 graph rewritten to compute in half precision, node by node, with the casts that it then needs.

- Inputs, weights and what only moves their numbers have no dtype of their own: they are brought to that of who reads
  them, weights from their float32 values. So the epsilon of a norm that is computed in float32 stays exact.
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

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import weights
from .graphs import inner, used
from .inference import inferred
from .kinds import ARITHMETIC, IN_FLOAT32, PARAMETERS, PEEPHOLES, QUANTIZERS, RANDOM, SHAPES, VIEWS, WITHOUT_HALF
from .schemas import Schema, schema
from .skeleton import bare, skeleton
from .types import STANDARD, answered, constant
from .wide import Wide
from .writer import Writer

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_FAR = 32
"""Nodes before a cast that are looked at for a mask."""


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

        self.model, self.half, self.folder = model, dtype, folder
        self.single = int(TensorProto.FLOAT)
        self.suffix = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
        self.made = bare(model)
        self.writer = Writer(self.made)
        self.wide = Wide(model.graph, folder)
        self.kept: list[str] = []
        self.names: dict[str, str] = {}
        """For a value of the old graph, the one that stands for it in the new."""
        self.dtypes: dict[str, int | None] = {}
        """Of each value of the new graph."""
        self.free: dict[str, TensorProto | NodeProto | None] = {}
        """Values that take the dtype of who reads them: weights, nodes that move or compute them; None: an input."""
        self.constant: set[str] = set()
        """Values that no input's numbers decide, only its sizes."""
        self.sizes: set[str] = set()
        """Those of them that are numbers computed of sizes, which half precision may be too small for."""
        self.brought: dict[tuple[str, int], str] = {}
        """Free values, and casts, that are in the new graph already."""
        self.producers: dict[str, NodeProto] = {}
        self.beyond: set[str] = set()
        """Weights in float32 that hold numbers beyond half precision."""
        self.lacking = WITHOUT_HALF["float16" if dtype == TensorProto.FLOAT16 else "bfloat16"]
        self.public = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
        self.own: dict[str, int] | None = None

    def run(self) -> ModelProto:
        graph = self.made.graph
        del graph.value_info[:]
        weights_of = {tensor.name for tensor in self.model.graph.initializer}
        fed = [value for value in graph.input if value.name not in weights_of]
        del graph.input[:], graph.node[:]
        graph.input.extend(fed)
        for value in fed:
            self._input(value.name, value.type.tensor_type.elem_type)
        for tensor in self.model.graph.initializer:
            self._weight(tensor)
        for node in self.model.graph.node:
            self._node(node)
        for name, dtype in self.public.items():
            self._output(name, dtype)
        graph.node.extend(self.writer.nodes)
        return self.made

    def _input(self, name: str, dtype: int) -> None:
        self.names[name], self.dtypes[name] = name, dtype
        if dtype == self.single:
            self.free[name] = None
            self.brought[name, dtype] = name

    def _weight(self, tensor: TensorProto) -> None:
        self.constant.add(tensor.name)
        if tensor.data_type in (self.single, self.half):
            self.free[tensor.name] = tensor
            return
        self.names[tensor.name], self.dtypes[tensor.name] = tensor.name, tensor.data_type
        self.made.graph.initializer.append(tensor)

    def _output(self, name: str, dtype: int) -> None:
        if name in self.free:
            source = self._read(name, dtype if dtype in (self.single, self.half) else self.single)
        else:
            source = self.names[name]
        if source != name:
            same = self.dtypes[source] == dtype
            self.writer.write("Identity" if same else "Cast", source, out=name, **({} if same else {"to": dtype}))

    def _node(self, node: NodeProto) -> None:
        if self._is_constant(node):
            self.constant.update(node.output)
        if node.op_type == "Constant" and (tensor := constant(node)) is not None:
            if tensor.data_type in (self.single, self.half):
                self.free[node.output[0]] = tensor
                return
        elif node.op_type in VIEWS and node.input[0] in self.free and not self._looks_up(node):
            self.free[node.output[0]] = node
            if node.input[0] in self.sizes:
                self.sizes.add(node.output[0])
            return
        if node.op_type in ("Cast", "CastLike"):
            self._cast_node(node)
            return
        known = schema(node.op_type, self.writer.opset) if node.domain in STANDARD else None
        if known is None or any(True for _ in inner(node)):
            self._whole(node)
            return
        if node.op_type == "BatchNormalization":
            node = self._merged(node)
        computed = [i for i, name in enumerate(node.input) if self._is_floating(name)]
        if computed and self._is_computed_constant(node):
            self.free[node.output[0]] = node
            if any(name in self.sizes for name in node.input) and node.op_type not in ("Sin", "Cos"):
                self.sizes.add(node.output[0])
            return
        self._emit(node, self._operands(node, known, computed), known)

    def _merged(self, node: NodeProto) -> NodeProto:
        """A batch norm by a factor and an addend, made of float32: half precision may not hold a variance."""
        from onnx import NodeProto, TensorProto

        tensors = [self.free.get(name) for name in node.input[1:5]]
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
            copy.input[place] = self._new_weight(f"{node.input[place]}.merged", value)
        kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
        del copy.attribute[:]
        copy.attribute.extend(kept)
        copy.attribute.add(name="epsilon", f=0.0, type=1)
        return copy

    def _new_weight(self, wish: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self.writer.new(wish)
        self.free[name] = numpy_helper.from_array(value.astype(np.float32), name)
        self.constant.add(name)
        return name

    def _is_constant(self, node: NodeProto) -> bool:
        if node.op_type in RANDOM or any(True for _ in inner(node)):
            return False
        return node.op_type in SHAPES or all(name in self.constant for name in node.input if name)

    def _is_computed_constant(self, node: NodeProto) -> bool:
        if not self._is_constant(node) or node.op_type in (*ARITHMETIC, *QUANTIZERS, *SHAPES):
            return False
        return len(node.output) == 1 and node.output[0] not in self.public

    def _looks_up(self, node: NodeProto) -> bool:
        """Whether a node reads rows of a weight by indices that are computed: what comes of it is no weight."""
        return node.op_type == "Gather" and node.input[0] in self.constant and node.input[1] not in self.constant

    def _is_floating(self, name: str) -> bool:
        return name in self.free or self.dtypes.get(self.names.get(name, "")) in (self.single, self.half)

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
        given = [self.dtypes[self.names[name]] for name in names if name not in self.free]
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

        tensor = self.free.get(name)
        if self.half != TensorProto.FLOAT16 or not isinstance(tensor, TensorProto):
            return True
        values = np.abs(weights.array(tensor, self.folder).astype(np.float64))
        return not np.any(values < float(np.finfo(np.float16).tiny)) and not np.any(values > weights.limit(self.half))

    def _emit(self, node: NodeProto, operands: dict[int, int], known: Schema) -> None:
        from onnx import NodeProto

        copy = NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if node.op_type in SHAPES:
                copy.input[place] = self._there(name)
            elif place in operands:
                copy.input[place] = self._read(name, operands[place])
            elif name:
                copy.input[place] = self._any(name)
        dtypes = [self.dtypes.get(name) if name else None for name in copy.input]
        self._finish(node, copy, answered(node, dtypes, self.writer.opset))
        if node.op_type in ARITHMETIC and set(operands.values()) == {self.single}:
            self.kept.append(node.name or node.output[0])

    def _finish(self, node: NodeProto, copy: NodeProto, answers: Sequence[int | None]) -> None:
        """Adds a node to the new graph, its outputs by names of their own where they are of another dtype."""
        for place, (name, dtype) in enumerate(zip(node.output, answers)):
            if not name:
                continue
            new = name
            if name in self.public and dtype != self.public[name]:
                new = copy.output[place] = self.writer.new(f"{name}.inner")
            self.names[name], self.dtypes[new] = new, dtype
            self.producers[new] = copy
        self.writer.nodes.append(copy)
        if self._narrows_after(node):
            for name in node.output:
                if name and name not in self.public and self.dtypes[self.names[name]] == self.single:
                    self.names[name] = self._cast(self.names[name], self.half)

    def _narrows_after(self, node: NodeProto) -> bool:
        """Whether what follows a node that computes in float32 computes in half precision again."""
        if self.wide.narrow_after(node):
            return True
        aside = node.op_type in self.lacking or any(name in self.sizes for name in node.input)
        return aside and not self._reads_float32(node)

    def _reads_float32(self, node: NodeProto) -> bool:
        """Whether a node reads values that the graph itself makes float32."""
        return any(
            self.dtypes.get(self.names.get(name, "")) == self.single for name in node.input if name not in self.free
        )

    def _cast_node(self, node: NodeProto) -> None:
        """A cast of the graph itself: one to float32 stays; one to half precision says what is done anyway."""
        from onnx import NodeProto

        name = node.input[0]
        if node.op_type == "CastLike":
            to = self.half if node.input[1] in self.free else self.dtypes[self.names[node.input[1]]]
        else:
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        if node.output[0] not in self.public:
            if name in self.free and to == self.half:
                self.free[node.output[0]] = self._moved(node)
                return
            if name in self.sizes and to == self.single:
                self.free[node.output[0]] = self._moved(node)
                self.sizes.add(node.output[0])
                return
            if name in self.constant and name not in self.free and to in (self.single, self.half):
                self.free[node.output[0]] = self._to_float32(node)
                self.sizes.add(node.output[0])
                return
        copy = NodeProto(op_type="Cast", name=node.name, input=[self._any(name)], output=node.output)
        copy.attribute.add(name="to", i=to, type=2)
        self._finish(node, copy, [to])

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
        renamed = {name: self._in_own(name) for name in reads if name in self.free or name in self.names}
        _rename(copy, renamed)
        self._finish(node, copy, [self._own(name) for name in node.output])
        for graph in inner(node):
            self.kept += [n.name or n.output[0] for n in _inner_nodes(graph) if n.op_type in ARITHMETIC]

    def _in_own(self, name: str) -> str:
        if not self._is_floating(name):
            return self.names[name]
        own = self._own(name)
        return self._read(name, own if own in (self.single, self.half) else self.single)

    def _own(self, name: str) -> int | None:
        """The dtype of a value in the graph as it was."""
        if self.own is None:
            types = inferred(skeleton(self.model))
            self.own = {name: kind.tensor_type.elem_type for name, kind in types.items()}
        return self.own.get(name) or self.single

    def _any(self, name: str) -> str:
        """A value in the dtype that it is there in, float32 where it has none."""
        return self._read(name, self.single) if name in self.free else self.names.get(name, name)

    def _there(self, name: str) -> str:
        """A value whose dtype makes no difference."""
        there = [self.brought[key] for dtype in (self.half, self.single) if (key := (name, dtype)) in self.brought]
        return there[0] if there else self._read(name, self.half) if name in self.free else self.names[name]

    def _read(self, name: str, dtype: int) -> str:
        """A value in a dtype."""
        if name not in self.free:
            return self._cast(self.names[name], dtype)
        if (name, dtype) not in self.brought:
            self.brought[name, dtype] = self._bring(name, dtype)
        return self.brought[name, dtype]

    def _bring(self, name: str, dtype: int) -> str:
        from onnx import NodeProto, TensorProto

        source = self.free[name]
        if source is None:
            return self._cast(name, dtype)
        # The name that it had, for the first dtype that it is read in: but for outputs, which are written last.
        taken = name in self.public or any((name, other) in self.brought for other in (self.single, self.half))
        new = self.writer.new(f"{name}.{self.suffix[dtype]}") if taken else name
        if isinstance(source, TensorProto):
            if source.data_type == dtype:
                made = TensorProto()
                made.CopyFrom(source)
                made.name = new
            else:
                made = weights.in_dtype(source, dtype, self.folder, new)
            self.made.graph.initializer.append(made)
            if dtype == self.single and self._is_beyond(source):
                self.beyond.add(new)
            self.dtypes[new] = dtype
            return new
        if source.op_type not in VIEWS and source.op_type != "ConstantOfShape" and dtype != self.single:
            return self._cast(self._read(name, self.single), dtype)  # computed of constants: once, and exactly
        copy = NodeProto()
        copy.CopyFrom(source)
        copy.output[0] = new
        if new != name and copy.name:
            copy.name = f"{copy.name}.{self.suffix[dtype]}"
        moved = source.op_type in VIEWS
        for place, read in enumerate(source.input):
            if read and self._is_floating(read) and (place == 0 or not moved):
                copy.input[place] = self._read(read, dtype)
            elif read:
                copy.input[place] = self._any(read)
        self.dtypes[new], self.producers[new] = dtype, copy
        self.writer.nodes.append(copy)
        return new

    def _is_beyond(self, tensor: TensorProto) -> bool:
        if np.prod(tensor.dims, dtype=np.int64) > _MASK:
            return False
        values = weights.array(tensor, self.folder)
        return bool(np.any(np.isfinite(values) & (np.abs(values) > weights.limit(self.half))))

    def _cast(self, name: str, dtype: int) -> str:
        """A value of the new graph in another dtype; a mask that half precision can't hold becomes its limit."""
        if self.dtypes[name] == dtype:
            return name
        if (name, dtype) not in self.brought:
            source = name
            if dtype == self.half and self._may_overflow(name):
                source = self._clipped(name)
            new = self.writer.write("Cast", source, out=self.writer.new(f"{name}.{self.suffix[dtype]}"), to=dtype)
            self.dtypes[new] = dtype
            self.brought[name, dtype] = new
        return self.brought[name, dtype]

    def _clipped(self, name: str) -> str:
        most = weights.limit(self.half)
        if self.writer.opset < 11:
            return self.writer.write("Clip", name, min=-most, max=most)
        bounds = [self.writer.constant(np.array(bound, np.float32)) for bound in (-most, most)]
        return self.writer.write("Clip", name, *bounds)

    def _may_overflow(self, name: str) -> bool:
        """Whether a float32 value may be a mask: computed of a constant beyond the range of half precision."""
        todo, seen = [name], {name}
        while todo and len(seen) < _FAR:
            current = todo.pop()
            if current in self.beyond:
                return True
            node = self.producers.get(current)
            if node is not None and node.op_type not in ARITHMETIC:
                new = [read for read in node.input if read not in seen]
                seen.update(new)
                todo += new
        return False


_MASK = 1 << 20
"""Elements of a constant up to which it may be a mask."""


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
