"""Weights that lie in files beside a model, of which ONNX says where: a location, an offset and a length."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO

from ...errors import ConversionError, SettingError
from .element_types import size
from .graphs import tensors
from .skeleton import bare, is_large

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LOCATION = "location"


@dataclass(frozen=True)
class Piece:
    """Where a tensor's bytes lie."""

    tensor: str
    location: str
    """Of the file, relative to the model's folder."""
    offset: int
    length: int
    """In bytes; what is not said is what the tensor's shape needs."""


def outside(model: ModelProto) -> Iterator[TensorProto]:
    """The tensors whose bytes lie outside."""
    from onnx import TensorProto

    return (tensor for tensor in tensors(model) if tensor.data_location == TensorProto.EXTERNAL)


def piece(tensor: TensorProto) -> Piece:
    """Where a tensor's bytes lie.

    Raises:
        ConversionError: What is said of it is no place, or not as long as the tensor.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = size(tensor)
    try:
        made = Piece(
            tensor.name, entries[LOCATION], int(entries.get("offset") or 0), int(entries.get("length") or needed)
        )
    except (KeyError, ValueError):
        raise _refused(tensor.name, f"are said to lie at {entries}", "a location, an offset and a length") from None
    if made.offset < 0 or made.length != needed:
        raise _refused(
            tensor.name,
            f"are {made.length:,} bytes at {made.offset:,} of {made.location}",
            f"{needed:,} bytes, as {list(tensor.dims)} needs",
        )
    return made


def check(model: ModelProto, file: Path | None) -> None:
    """Checks that every file is there, long enough, and nowhere but where the model lies.

    Args:
        model: What names them.
        file: The model's own; None: it came without one.

    Raises:
        SettingError: The model came without a folder.
        ConversionError: A file is missing or too short, or its location leads out of the folder.
    """
    sizes: dict[str, int] = {}
    for tensor in outside(model):
        place = piece(tensor)
        if file is None:
            raise SettingError(
                f"The weights {place.tensor} lie in a file, {place.location}, and the model came without its folder.",
                "weights within the model, or the path of its file",
                "give the path of the ONNX file, or load the weights: onnx.load(path)",
            )
        if place.location not in sizes:
            sizes[place.location] = _size_of(place, file)
        if place.offset + place.length > sizes[place.location]:
            raise _too_short(place, sizes[place.location])


def _size_of(place: Piece, model: Path) -> int:
    location = place.location
    paths = (PurePosixPath(location), PureWindowsPath(location))
    if not location or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise _refused(place.tensor, f"are said to lie at {location!r}", "a path within the model's folder")
    path = model.parent / location
    if not path.is_file():
        raise _refused(place.tensor, f"lie in {path}, which is missing", "the file beside the model")
    # A cache may hold links, the model's own among them: then both files lie in one folder.
    homes = (model.parent.resolve(), model.resolve().parent)
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise _refused(
            place.tensor, f"lie at {location}, a link to {path.resolve()}", "a file within the model's folder"
        )
    return path.stat().st_size


def _too_short(place: Piece, size: int) -> ConversionError:
    end = place.offset + place.length
    return _refused(place.tensor, f"end at {end:,} of {place.location}, which has {size:,}", "a whole file")


def _refused(tensor: str, found: str, expected: str) -> ConversionError:
    return ConversionError(
        f"The bytes of {tensor or 'a tensor'} {found}.",
        expected,
        "keep the model and the files of its weights together, as they were saved; or save it again with "
        "onnx.save(model, path, save_as_external_data=True)",
    )


def load(model: ModelProto, folder: Path, most: float = math.inf) -> None:
    """Reads them into a model, which is changed.

    Args:
        model: The model.
        folder: Where its files lie.
        most: Elements of the largest that is read.

    Raises:
        ConversionError: A file has become shorter.
    """
    from onnx import TensorProto

    for tensor in outside(model):
        if prod(tensor.dims) > most:
            continue
        place = piece(tensor)
        with (folder / place.location).open("rb") as file:
            file.seek(place.offset)
            content = file.read(place.length)
        if len(content) != place.length:
            raise _too_short(place, place.offset + len(content))
        tensor.raw_data = content
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


MOST_WITHIN = 1 << 30
"""Bytes of weights that are written within a model: with its nodes it has to stay below protobuf's 2 GB."""


def within(model: ModelProto) -> int:
    """Bytes of the weights that lie within a model."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def moved(model: ModelProto, names: Mapping[str, str], folder: Path, beside: str) -> ModelProto:
    """A model whose weights lie in files of other names.

    Args:
        model: The model; it is not changed.
        names: Of the files that it has, by location: the new ones.
        folder: Where they are, and where weights that are too large to stay within are written.
        beside: The name of the file for these.
    """
    made = bare(model)
    inside = within(model) <= MOST_WITHIN
    with (folder / beside).open("wb") if not inside else contextlib.nullcontext() as file:
        for tensor in model.graph.initializer:
            if file is None or not (is_large(tensor) and tensor.raw_data):
                made.graph.initializer.append(tensor)
            else:
                made.graph.initializer.append(_written(tensor, file, beside))
    for tensor in outside(made):
        for entry in tensor.external_data:
            if entry.key == LOCATION:
                entry.value = names.get(entry.value, entry.value)
    return made


def _written(tensor: TensorProto, file: BinaryIO, name: str) -> TensorProto:
    from onnx import TensorProto

    file.write(b"\0" * (-file.tell() % _ALIGNED))
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    for key, value in ((LOCATION, name), ("offset", file.tell()), ("length", len(tensor.raw_data))):
        made.external_data.add(key=key, value=str(value))
    file.write(tensor.raw_data)
    return made


_ALIGNED = 64
"""Bytes to whose multiples weights are written: no element crosses where memory is read at once."""
