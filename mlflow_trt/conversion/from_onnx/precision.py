"""The graph that is built: the model's, with its arithmetic at a precision.

TensorRT's networks are strongly typed: the precision of an engine is that of its graph. The converters that are there
(``onnxruntime.transformers.float16``, the same of onnxconverter-common, nvidia-modelopt's) have no bfloat16 or need
torch, make half precision of what a graph casts to float32 itself, or hold all of its weights in one protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...plan.dtypes import DTYPE_OF, ONNX
from .element_types import name_of
from .graphs import inner
from .model import OnnxModel
from .narrowing import narrowed
from .retyped import retyped
from .types import dtypes
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Cast:
    """A graph at a precision."""

    model: OnnxModel
    kept: tuple[str, ...]
    """Arithmetic that stays in float32 because the graph itself makes its operands so: names of nodes."""
    dtypes: frozenset[str]
    """Every dtype of the graph's values, as in :mod:`mlflow_trt.plan.dtypes`."""


def cast(model: OnnxModel, precision: str | None) -> Cast:
    """Rewrites a graph so that its arithmetic is at a precision; the given one stays as it is.

    Inputs and outputs keep their dtypes, but for those that callers or TensorRT have not: bfloat16 and float64 become
    float32. float64 becomes float32 within the graph too.

    Args:
        model: A graph in plain operators. Weights in files are read one by one; those that change are held in memory
            from then on.
        precision: ``"fp32"``, ``"tf32"``, ``"fp16"``, ``"bf16"``; None: as the graph is.
    """
    from onnx import TensorProto

    wanted = int(TensorProto.DataType.Value(_MEMBERS[DTYPE_OF[precision]])) if precision else None
    replaced = _replaced(wanted)
    proto = model.proto
    public = {
        value.name: _PUBLIC.get(kind, kind)
        for value in (*proto.graph.input, *proto.graph.output)
        for kind in (value.type.tensor_type.elem_type,)
    }
    made = retyped(proto, replaced, model.folder)
    _border(made, public)
    kept: tuple[str, ...] = ()
    if wanted is not None and wanted != TensorProto.FLOAT:
        made, kept = narrowed(made, wanted, model.folder)
    return Cast(OnnxModel(made, model.folder), kept, frozenset(_dtypes(made)))


_MEMBERS = {name: member for member, name in ONNX.items()}
_PUBLIC = {11: 1, 16: 1}
"""What callers see of DOUBLE and BFLOAT16: FLOAT."""


def _replaced(wanted: int | None) -> Mapping[int, int]:
    """What each floating dtype becomes before anything else."""
    from onnx import TensorProto

    double = {int(TensorProto.DOUBLE): int(TensorProto.FLOAT)}
    if wanted is None:
        return double
    halves = (int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16))
    return double | {half: wanted for half in halves if half != wanted}


def _border(model: ModelProto, public: Mapping[str, int]) -> None:
    """Casts inputs and outputs from and to the dtypes that callers see."""
    graph = model.graph
    writer = Writer(model)
    entries = {}
    for value in graph.input:
        kind = value.type.tensor_type
        if kind.elem_type != public[value.name]:
            entries[value.name] = writer.new(f"{value.name}.inner")
            writer.write("Cast", value.name, out=entries[value.name], to=kind.elem_type)
            kind.elem_type = public[value.name]
    leaving = {v.name: v for v in graph.output if v.type.tensor_type.elem_type != public[v.name]}
    renamed = entries | {name: writer.new(f"{name}.inner") for name in leaving}
    if not renamed:
        return
    first = list(writer.nodes)
    writer.nodes.clear()
    for name, value in leaving.items():
        writer.write("Cast", renamed[name], out=name, to=public[name])
        value.type.tensor_type.elem_type = public[name]
    for node in graph.node:
        _rename(node, renamed)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    inside = list(graph.node)
    del graph.node[:]
    graph.node.extend((*first, *inside, *writer.nodes))


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = renamed.get(name, name)
    for graph in inner(node):
        for each in graph.node:
            _rename(each, renamed)


def _dtypes(model: ModelProto) -> Iterator[str]:
    """Names of the dtypes of all values, those of quantized weights among them."""
    return map(_name, set(dtypes(model).values()) - {0})


def _name(dtype: int) -> str:
    return name_of(dtype) or "unknown"
