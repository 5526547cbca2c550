"""The protocol's datatypes: their names, and tensors as raw bytes and as JSON values, both ways.

Whatever a client says of its data is checked against the data that is really there, before an array is made of it.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import chain
from typing import Any

import numpy as np
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from ...errors import TrtError
from ...plan.casts import from_bfloat16, to_bfloat16
from ...plan.dtypes import TABLE

DATATYPES: dict[str, np.dtype] = {
    d.protocol: d.storage.newbyteorder("<") for d in TABLE if d.protocol and d.storage is not None
}
"""A datatype → the numpy dtype of its raw data, little-endian; BF16, which numpy lacks, as its bits."""

NAMES = {d.name: d.protocol for d in TABLE if d.protocol and d.caller is None}
"""An interface's dtype → the datatype that callers see: ``{"float32": "FP32"}``."""

OF_BINDINGS = {d.name: d.protocol for d in TABLE if d.protocol}
"""The same for a binding's dtype, which may be bfloat16."""

_MAX_RANK = 32  # the most that every numpy release holds
_MAX_ELEMENTS = 2**40  # an empty array's other sizes are limited too: numpy multiplies them
_LENGTH = struct.Struct("<I")
_JSON_TYPES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "u": ({int}, "integers"),
    "i": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
    "O": ({str}, "strings"),
}
"""A numpy kind → what its elements are in JSON, as Python's parser gives them."""

Shape = tuple[int, ...]


class ProtocolError(TrtError):
    """A request is not what the Open Inference Protocol says, or asks for what this server does not do."""

    error_code_number = BAD_REQUEST


def show(value: Any) -> str:
    """A client's value in a message: short, on one line, nothing in it that a log or terminal would obey."""
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    text = repr(value[:61]) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 62 else text[:60] + "…"


def check_datatype(name: str, datatype: Any) -> str:
    """Returns the datatype.

    Args:
        name: The tensor's name, for messages.
        datatype: What the client says.

    Raises:
        ProtocolError: There is no such datatype.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ProtocolError(
            f"Input {show(name)} has the datatype {show(datatype)}.",
            f"one of {', '.join(DATATYPES)}",
            "give the datatype that the model's metadata names",
        )
    return datatype


def check_shape(name: str, shape: Any) -> Shape:
    """Returns the shape as a tuple.

    Args:
        name: The tensor's name, for messages.
        shape: A list, as the client sent it.

    Raises:
        ProtocolError: It is no list of sizes, or no array may have so many dimensions or elements.
    """
    if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
        what = f"[{', '.join(map(show, shape[:8]))}{', …' * (len(shape) > 8)}]" if type(shape) is list else show(shape)
        raise ProtocolError(
            f"Input {show(name)} has the shape {what}.",
            "an array of integers, none below 0",
            "give the shape of the data that follows; -1 is for metadata only",
        )
    if len(shape) > _MAX_RANK or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise ProtocolError(
            f"Input {show(name)} has a shape of {len(shape)} dimensions that is too large.",
            f"at most {_MAX_RANK} dimensions and {_MAX_ELEMENTS:,} elements",
            "split the request",
        )
    return tuple(shape)


def from_raw(name: str, datatype: str, shape: Shape, data: bytes | bytearray | memoryview) -> np.ndarray:
    """Reads raw data.

    Args:
        name: The tensor's name, for messages.
        datatype: A key of ``DATATYPES``.
        shape: From ``check_shape``.
        data: Exactly the tensor's bytes: little-endian, row-major.

    Returns:
        A view of ``data``; of BF16 a float32 array, of BYTES an array of ``bytes`` objects.

    Raises:
        ProtocolError: The size disagrees with the shape, or BOOL holds anything but 0 and 1.
    """
    if datatype == "BYTES":
        return _objects(_split(name, math.prod(shape), data), shape)
    dtype = DATATYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ProtocolError(
            f"Input {show(name)} has {len(data)} bytes of binary data.",
            f"{expected}: {datatype} of shape {list(shape)}",
            "send as many bytes as its shape and datatype say",
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BF16":
        return from_bfloat16(array)
    if datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise ProtocolError(
            f"Input {show(name)} is BOOL and has bytes above 1.", "0 or 1 in each byte", "convert the data to booleans"
        )
    return array


def from_json(name: str, datatype: str, shape: Shape, data: Any) -> np.ndarray:
    """Reads JSON data, flat (row-major) or nested as the shape says.

    Args:
        name: The tensor's name, for messages.
        datatype: A key of ``DATATYPES``.
        shape: From ``check_shape``.
        data: What the JSON parser made of it.

    Returns:
        A new array; of BF16 a float32 array with values that BF16 has, of BYTES an array of ``bytes`` objects, UTF-8.

    Raises:
        ProtocolError: The number of elements or the nesting disagrees with the shape, or an element's type or value
            with the datatype.
    """
    if type(data) is not list:
        raise ProtocolError(
            f"Input {show(name)} has no data." if data is None else f"Input {show(name)} has {show(data)} as its data.",
            "an array, flat or nested as the shape says, or binary data with its binary_data_size",
            "add the data",
        )
    values = _flat(name, shape, data)
    dtype = DATATYPES[datatype]
    types, words = _JSON_TYPES["f" if datatype == "BF16" else dtype.kind]
    if not types.issuperset(map(type, values)):
        wrong = next(value for value in values if type(value) not in types)
        raise ProtocolError(f"Input {show(name)} is {datatype} and holds {show(wrong)}.", words, "convert the data")
    if dtype.kind == "O":
        return _objects([_utf8(name, value) for value in values], shape)
    if dtype.kind in "iu" and datatype != "BF16" and values:
        limits = np.iinfo(dtype)  # numpy before 2.0 wraps what is beyond them
        if min(values) < limits.min or max(values) > limits.max:
            raise _beyond(name, datatype)
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32 if datatype == "BF16" else dtype).reshape(shape)
    except OverflowError as error:  # an integer that not even float64 holds
        raise _beyond(name, datatype) from error
    if datatype == "BF16":
        array = from_bfloat16(to_bfloat16(array))
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinities, but has 1e999
        raise _beyond(name, datatype)
    return array


def to_raw(array: np.ndarray, datatype: str) -> bytes | memoryview:
    """Returns a tensor's raw data: little-endian, row-major, not copied where the array is so already."""
    if datatype == "BYTES":
        return b"".join([part for item in array.flat for part in (_LENGTH.pack(len(item)), item)])
    array = array.astype(DATATYPES[datatype], casting="equiv", copy=False)
    return array.reshape(-1).view(np.uint8).data


def to_json(name: str, array: np.ndarray, datatype: str) -> list[Any]:
    """Returns a tensor's elements for JSON, row-major; see :func:`elements_of`.

    Raises:
        ProtocolError: JSON has no bytes that are not UTF-8.
    """
    if datatype != "BYTES":
        return elements_of(array)
    try:
        return [item.decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise ProtocolError(
            f"Output {name!r} holds bytes that are not UTF-8, which JSON has not.",
            "an output that JSON can carry",
            'ask for it in binary: "parameters": {"binary_data": true}',
        ) from error


def elements_of(array: np.ndarray) -> list[Any]:
    """Returns an array's elements for JSON, row-major.

    JSON has no NaN and no infinities. They become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, as in
    protobuf's JSON: what reads numbers from strings, as Python and NumPy do, gets the very values back.
    """
    values: list[Any] = array.reshape(-1).tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        for place in np.flatnonzero(~np.isfinite(array.reshape(-1))).tolist():
            value = values[place]
            values[place] = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return values


def _split(name: str, count: int, data: bytes | bytearray | memoryview) -> list[bytes]:
    """Takes the elements of BYTES apart: four bytes of length before each."""
    items: list[bytes] = []
    start, end = 0, len(data)
    while start + _LENGTH.size <= end and len(items) < count:
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size + length
        items.append(bytes(data[start - length : start]))
    if len(items) != count or start != end:
        raise ProtocolError(
            f"Input {show(name)} has {end} bytes of binary data, which are not {count} elements of BYTES.",
            "of each element its length in four bytes, little-endian, then its bytes, and nothing more",
            "serialize it so, or correct the shape",
        )
    return items


def _flat(name: str, shape: Shape, data: list[Any]) -> list[Any]:
    """The elements of flat or nested data, of which there are as many as the shape says."""
    values, nested = data, True
    if data and type(data[0]) is list:
        nested = len(shape) > 1 and len(data) == shape[0]
        for size in shape[1:]:
            nested = nested and all(type(row) is list and len(row) == size for row in values)
            if not nested:
                break
            values = list(chain.from_iterable(values))
    count = math.prod(shape)
    if not nested or len(values) != count:
        what = f"{len(values)} elements in its data" if nested else "data that is nested otherwise than its shape"
        raise ProtocolError(
            f"Input {show(name)} has {what}.",
            f"{count} elements, in one array or nested as {list(shape)}",
            "correct the shape or the data",
        )
    return values


def _objects(items: list[bytes], shape: Shape) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(
            f"Input {show(name)} holds a string with half of a surrogate pair.",
            "strings that UTF-8 can encode",
            "send bytes that are no text as binary data",
        ) from error


def _beyond(name: str, datatype: str) -> ProtocolError:
    return ProtocolError(
        f"Input {show(name)} holds a number that {datatype} can't hold.",
        f"numbers within the range of {datatype}",
        "correct the data",
    )
