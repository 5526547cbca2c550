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
from .border import bordered, public_dtype
from .element_types import name_of
from .model import OnnxModel
from .narrowing import narrowed
from .retyped import retyped
from .types import dtypes

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Cast:
    """A graph at a precision."""

    model: OnnxModel
    kept: tuple[str, ...]
    """Arithmetic that stays in float32 because the graph itself makes its operands so: names of nodes, once for
    each two layers that one may be."""
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
    public = {v.name: public_dtype(v.type.tensor_type.elem_type) for v in (*proto.graph.input, *proto.graph.output)}
    made = retyped(proto, replaced, model.folder)
    bordered(made, public)
    kept: tuple[str, ...] = ()
    if wanted is not None and wanted != TensorProto.FLOAT:
        made, kept = narrowed(made, wanted, model.folder)
    return Cast(OnnxModel(made, model.folder), kept, frozenset(_dtypes(made)))


_MEMBERS = {name: member for member, name in ONNX.items()}


def _replaced(wanted: int | None) -> Mapping[int, int]:
    """What each floating dtype becomes before anything else."""
    from onnx import TensorProto

    double = {int(TensorProto.DOUBLE): int(TensorProto.FLOAT)}
    if wanted is None:
        return double
    halves = (int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16))
    return double | {half: wanted for half in halves if half != wanted}


def _dtypes(model: ModelProto) -> Iterator[str]:
    """Names of the dtypes of all values, those of quantized weights among them."""
    return filter(None, map(name_of, dtypes(model).values()))
