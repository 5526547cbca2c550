"""A model in ONNX: read from where the caller has it, and written for who works with it next."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from onnx import ModelProto

OnnxSource = Union[str, Path, bytes, "ModelProto"]

FILE = "model.onnx"


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph."""

    name: str
    dtype: str
    """As in :mod:`mlflow_trt.plan.dtypes`: ``"float32"``."""
    shape: tuple[int | str | None, ...] | None
    """A size, a dynamic dimension's name, or None for one without a name; None alone: not even the rank is known."""


@dataclass(frozen=True)
class OnnxModel:
    """A graph and its weights."""

    proto: ModelProto
    """Weights that lie in files of their own are not loaded into it: together they may exceed protobuf's 2 GB."""
    folder: Path | None = None
    """Where these files lie; None: there are none."""

    @property
    def inputs(self) -> tuple[GraphTensor, ...]:
        """What the graph is fed: its inputs but for those that are weights with a default."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(_tensors(i for i in self.proto.graph.input if i.name not in weights))

    @property
    def outputs(self) -> tuple[GraphTensor, ...]:
        """What it answers."""
        return tuple(_tensors(self.proto.graph.output))


def read(source: OnnxSource) -> OnnxModel:
    """Reads a model.

    Args:
        source: An ONNX file, whose external data lies beside it, its bytes, or a ``ModelProto``.
    """
    import onnx

    if isinstance(source, onnx.ModelProto):
        return OnnxModel(source)
    if isinstance(source, bytes):
        return OnnxModel(onnx.load_from_string(source))
    path = Path(source)
    return OnnxModel(onnx.load(str(path), load_external_data=False), path.parent)


def write(model: OnnxModel, folder: Path) -> Path:
    """Writes a model and its weights into a folder.

    Returns:
        The model's file.
    """
    for location in sorted(external_files(model)):
        assert model.folder is not None
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.folder / location, target)
    path = folder / FILE
    path.write_bytes(model.proto.SerializeToString())
    return path


def external_files(model: OnnxModel) -> set[str]:
    """The files beside the model that hold weights, relative to its folder."""
    return {
        entry.value
        for tensor in model.proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(values: Iterable[Any]) -> Iterator[GraphTensor]:
    from onnx import helper

    for value in values:
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shape = None
        if kind.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
        yield GraphTensor(value.name, dtype, shape)
