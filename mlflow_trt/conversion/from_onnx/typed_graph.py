"""A graph that is written node by node, where each value's dtype is known, and some have that of who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import weights
from .kinds import ARITHMETIC, VIEWS
from .skeleton import bare
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_FAR = 32
"""Nodes before a cast that are looked at for a mask."""

_MASK = 1 << 20
"""Elements of a constant up to which it may be a mask."""


class TypedGraph:
    """A new graph for a model, in float32 and one half precision.

    Args:
        model: What it is made of; it stays as it is. Values are asked for by their names in it.
        half: FLOAT16 or BFLOAT16 of ``TensorProto``.
        folder: Where weights lie that lie in files.
    """

    def __init__(self, model: ModelProto, half: int, folder: Path | None) -> None:
        from onnx import TensorProto

        self.half, self.single, self.folder = half, int(TensorProto.FLOAT), folder
        self.free: dict[str, TensorProto | NodeProto | None] = {}
        """Values that take the dtype of who reads them: weights, nodes that move or compute them; None: an input."""
        self.opset: int
        self._suffix = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
        self._made = bare(model)
        self._writer = Writer(self._made)
        self.opset = self._writer.opset
        self._names: dict[str, str] = {}
        """For a value of the model, the one that stands for it here."""
        self._dtypes: dict[str, int | None] = {}
        """Of each value here."""
        self._brought: dict[tuple[str, int], str] = {}
        """Free values, and casts, that are here already."""
        self._producers: dict[str, NodeProto] = {}
        self._beyond: set[str] = set()
        """Weights in float32 that hold numbers beyond half precision."""
        self._public = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
        graph = self._made.graph
        del graph.value_info[:], graph.node[:]
        for value in graph.input:
            self._input(value.name, value.type.tensor_type.elem_type)
        for tensor in model.graph.initializer:
            self._weight(tensor)

    def finished(self) -> ModelProto:
        """The model, with the outputs that it had."""
        for name, dtype in self._public.items():
            if (self.dtype(name), dtype) == (self.half, self.single):
                self._writer.write("Cast", self._names[name], out=name, to=dtype)
            elif (source := self.read(name, dtype) if self.is_floating(name) else self.any(name)) != name:
                self._writer.write("Identity", source, out=name)
        self._made.graph.node.extend(self._writer.nodes)
        return self._made

    def _input(self, name: str, dtype: int) -> None:
        self._names[name], self._dtypes[name] = name, dtype
        if dtype == self.single:
            self.free[name] = None
            self._brought[name, dtype] = name

    def _weight(self, tensor: TensorProto) -> None:
        if tensor.data_type in (self.single, self.half):
            self.free[tensor.name] = tensor
            return
        self._names[tensor.name], self._dtypes[tensor.name] = tensor.name, tensor.data_type
        self._made.graph.initializer.append(tensor)

    def new_weight(self, wish: str, value: np.ndarray) -> str:
        """Adds a weight that the model has not, and gives its name."""
        from onnx import numpy_helper

        name = self._writer.new(wish)
        self.free[name] = numpy_helper.from_array(value.astype(np.float32), name)
        return name

    def is_floating(self, name: str) -> bool:
        """Whether a value is of a dtype that is computed in here."""
        return name in self.free or self.dtype(name) in (self.single, self.half)

    def dtype(self, name: str) -> int | None:
        """The dtype of a value that has one of its own; None for others, and where it is not known."""
        return None if name in self.free else self._dtypes.get(self._names.get(name, ""))

    def holds(self, name: str) -> bool:
        """Whether a value is one of the graph: not one of a graph within."""
        return name in self.free or name in self._names

    def dtype_here(self, name: str) -> int | None:
        """The dtype of a value by its name in the new graph."""
        return self._dtypes.get(name)

    def add(self, node: NodeProto, copy: NodeProto, answers: Sequence[int | None]) -> None:
        """Adds a node, whose outputs have names of their own where they are of another dtype than the model's.

        Args:
            node: The node as the model has it.
            copy: The same, reading values of this graph.
            answers: The dtypes of its outputs.
        """
        for place, (name, dtype) in enumerate(zip(node.output, answers)):
            if not name:
                continue
            new = name
            if name in self._public and dtype != self._public[name]:
                new = copy.output[place] = self._writer.new(f"{name}.inner")
            self._names[name], self._dtypes[new] = new, dtype
            self._producers[new] = copy
        self._writer.nodes.append(copy)

    def narrow(self, name: str) -> None:
        """Has who reads a value from here on read it in half precision."""
        if name not in self._public and self.dtype(name) == self.single:
            self._names[name] = self._cast(self._names[name], self.half)

    def any(self, name: str) -> str:
        """A value in the dtype that it is there in, float32 where it has none."""
        return self.read(name, self.single) if name in self.free else self._names.get(name, name)

    def there(self, name: str) -> str:
        """A value whose dtype makes no difference."""
        there = [self._brought[key] for dtype in (self.half, self.single) if (key := (name, dtype)) in self._brought]
        return there[0] if there else self.read(name, self.half) if name in self.free else self._names[name]

    def read(self, name: str, dtype: int) -> str:
        """A value in a dtype."""
        if name not in self.free:
            return self._cast(self._names[name], dtype)
        if (name, dtype) not in self._brought:
            self._brought[name, dtype] = self._bring(name, dtype)
        return self._brought[name, dtype]

    def _bring(self, name: str, dtype: int) -> str:
        from onnx import NodeProto, TensorProto

        source = self.free[name]
        if source is None:
            return self._cast(name, dtype)
        # The name that it had, for the first dtype that it is read in: but for outputs, which are written last.
        taken = name in self._public or any((name, other) in self._brought for other in (self.single, self.half))
        new = self._writer.new(f"{name}.{self._suffix[dtype]}") if taken else name
        if isinstance(source, TensorProto):
            if source.data_type == dtype:
                made = TensorProto()
                made.CopyFrom(source)
                made.name = new
            else:
                made = weights.in_dtype(source, dtype, self.folder, new)
            self._made.graph.initializer.append(made)
            if dtype == self.single and self._is_beyond(source):
                self._beyond.add(new)
            self._dtypes[new] = dtype
            return new
        if source.op_type not in VIEWS and source.op_type != "ConstantOfShape" and dtype != self.single:
            return self._cast(self.read(name, self.single), dtype)  # computed of constants: once, and exactly
        copy = NodeProto()
        copy.CopyFrom(source)
        copy.output[0] = new
        if new != name and copy.name:
            copy.name = f"{copy.name}.{self._suffix[dtype]}"
        moved = source.op_type in VIEWS
        for place, read in enumerate(source.input):
            if read and self.is_floating(read) and (place == 0 or not moved):
                copy.input[place] = self.read(read, dtype)
            elif read:
                copy.input[place] = self.any(read)
        self._dtypes[new], self._producers[new] = dtype, copy
        self._writer.nodes.append(copy)
        return new

    def _is_beyond(self, tensor: TensorProto) -> bool:
        if np.prod(tensor.dims, dtype=np.int64) > _MASK:
            return False
        values = weights.array(tensor, self.folder)
        return bool(np.any(np.isfinite(values) & (np.abs(values) > weights.limit(self.half))))

    def _cast(self, name: str, dtype: int) -> str:
        """A value of the new graph in another dtype; a mask that half precision can't hold becomes its limit."""
        if self._dtypes[name] == dtype:
            return name
        if (name, dtype) not in self._brought:
            source = name
            if dtype == self.half and self._may_overflow(name):
                source = self._clipped(name)
            new = self._writer.write("Cast", source, out=self._writer.new(f"{name}.{self._suffix[dtype]}"), to=dtype)
            self._dtypes[new] = dtype
            self._brought[name, dtype] = new
        return self._brought[name, dtype]

    def _clipped(self, name: str) -> str:
        most = weights.limit(self.half)
        if self._writer.opset < 11:
            return self._writer.write("Clip", name, min=-most, max=most)
        bounds = [self._writer.constant(np.array(bound, np.float32)) for bound in (-most, most)]
        return self._writer.write("Clip", name, *bounds)

    def _may_overflow(self, name: str) -> bool:
        """Whether a float32 value may be a mask: computed of a constant beyond the range of half precision."""
        todo, seen = [name], {name}
        while todo and len(seen) < _FAR:
            current = todo.pop()
            if current in self._beyond:
                return True
            node = self._producers.get(current)
            if node is not None and node.op_type not in ARITHMETIC:
                new = [read for read in node.input if read not in seen]
                seen.update(new)
                todo += new
        return False
