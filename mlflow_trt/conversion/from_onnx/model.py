"""A model in ONNX: read from where the caller has it, and written for who works with it next."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConversionError, SettingError
from . import checks, external_data
from .element_types import kind_of
from .parsing import OnnxSource as OnnxSource
from .parsing import parse
from .skeleton import SMALL

if TYPE_CHECKING:
    from onnx import ModelProto

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
    """A graph and its weights. No step changes it: each makes another."""

    proto: ModelProto
    """Weights that lie in files of their own are not loaded into it: together they may exceed protobuf's 2 GB."""
    folder: Path | None = None
    """Where these files lie; None: there are none."""

    def write_into(self, folder: Path) -> Path:
        """Writes it, its weights beside it, and returns its file."""
        return write(self, folder)

    @property
    def inputs(self) -> tuple[GraphTensor, ...]:
        """What the graph is fed: its inputs but for those that are weights with a default."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(_tensors(i for i in self.proto.graph.input if i.name not in weights))

    @property
    def outputs(self) -> tuple[GraphTensor, ...]:
        """What it answers; only of what :func:`.plain.plain` made are all of them tensors."""
        return tuple(_tensors(self.proto.graph.output))


def read(source: OnnxSource) -> OnnxModel:
    """Reads a model, and checks what can be said of it before anything is done with it.

    Args:
        source: An ONNX file, whose external data lies beside it, its bytes, or a ``ModelProto``, which stays as it is.

    Raises:
        SettingError: The file is not there.
        ConversionError: It is no model in ONNX, not a whole one, or one that can't become an engine.
    """
    proto, file = parse(source)
    checks.check_versions(proto)
    checks.check_weights(proto)
    external_data.check(proto, file)
    if file is not None:
        external_data.load(proto, file.parent, SMALL)  # shapes, axes and conditions are asked for everywhere
    checks.check_graph(proto)
    _forget_unknown_sizes(proto)
    return OnnxModel(proto, file.parent if file is not None and any(external_data.outside(proto)) else None)


def loaded(model: OnnxModel) -> ModelProto:
    """The graph with its weights within, for who needs their values.

    It may be larger than what protobuf serializes: write it with :func:`write`. It is not to be changed.
    """
    if model.folder is None:
        return model.proto
    proto = _copy(model.proto)
    external_data.load(proto, model.folder)
    return proto


def fixed(model: OnnxModel, sizes: Mapping[str, Sequence[int | None]]) -> OnnxModel:
    """A model whose inputs have fewer dynamic dimensions.

    Args:
        model: The model.
        sizes: For an input, a size for each dimension, or None for one that stays as it is. Where a dimension has a
            name, all dimensions of this name are of this size.

    Raises:
        SettingError: An input is not there or of another rank, or a dimension is of another size already.
    """
    proto = _copy(model.proto)
    values = {value.name: value for value in proto.graph.input}
    named: dict[str, int] = {}
    for name, wanted in sizes.items():
        dims = values[name].type.tensor_type.shape.dim if name in values else None
        if dims is None or len(dims) != len(wanted):
            found = f"has {len(dims)} dimensions" if dims is not None else "is not there"
            raise SettingError(
                f"The input {name} {found}, and {len(wanted)} sizes were given for it.",
                f"the graph's inputs: {_listed(model)}",
                "correct the sizes",
            )
        for place, (dim, size) in enumerate(zip(dims, wanted)):
            if size is None:
                continue
            own = dim.dim_value if dim.HasField("dim_value") else named.get(dim.dim_param)
            if own is not None and own != size:
                raise SettingError(
                    f"Dimension {place} of the input {name}{f' ({dim.dim_param})' if dim.dim_param else ''} is {own}, "
                    f"and {size} was given.",
                    f"{own}",
                    "give equal sizes for dimensions of one name, or export the graph with a dynamic dimension",
                )
            if dim.dim_param:
                named[dim.dim_param] = size
            dim.dim_value = size
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]
    return OnnxModel(proto, model.folder)


def write(model: OnnxModel, folder: Path) -> Path:
    """Writes a model and its weights into a folder.

    Returns:
        The model's file; other files that belong to it have names that begin as its.

    Raises:
        ConversionError: Its nodes hold more than protobuf writes.
        OSError: The folder can't be written, or a file of weights not read.
    """
    path = folder / FILE
    locations = sorted(external_files(model))
    names = {location: f"{FILE}.data{index or ''}" for index, location in enumerate(locations)}
    for location, name in names.items():
        assert model.folder is not None
        shutil.copyfile(model.folder / location, folder / name)
    proto = model.proto
    beside = f"{FILE}.data{len(names) or ''}"
    if names or external_data.within(proto) > external_data.MOST_WITHIN:
        proto = external_data.moved(proto, names, folder, beside)
    path.write_bytes(_serialized(proto))
    return path


def _serialized(proto: ModelProto) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        return bytes(proto.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ConversionError(
            f"The graph can't be written: {error}.",
            "2 GB at most in constants of its nodes",
            "export the model so that its weights are initializers of the graph",
        ) from error


def external_files(model: OnnxModel) -> set[str]:
    """The files beside the model that hold weights, relative to its folder."""
    return {external_data.piece(tensor).location for tensor in external_data.outside(model.proto)}


def _forget_unknown_sizes(proto: ModelProto) -> None:
    """Some exporters write -1 for a size that is not known."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _copy(proto: ModelProto) -> ModelProto:
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _tensors(values: Iterable[Any]) -> Iterator[GraphTensor]:
    for value in values:
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
        yield GraphTensor(value.name, kind_of(value), shape)


def _listed(model: OnnxModel) -> str:
    return ", ".join(
        f"{i.name} ({', '.join('?' if size is None else str(size) for size in i.shape or ())})" for i in model.inputs
    )
