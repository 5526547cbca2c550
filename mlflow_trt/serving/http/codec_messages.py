"""What the server and the process that reads and writes large JSON send each other.

A frame is a message in :mod:`marshal`'s form, since both ends are the same Python, and then the buffers that belong to
it, as they are.
"""

from __future__ import annotations

import marshal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union, get_args

import numpy as np

from ..error_parts import ErrorParts
from ..protocol import datatypes
from ..protocol.inference_request import InferenceRequest, RequestedOutput
from ..served_model import ServedVersion

Buffer = Union[bytes, bytearray, memoryview]
Arrays = Mapping[str, np.ndarray]
ArrayHead = tuple[str, str, tuple[int, ...]]
"""An array whose bytes are a buffer of the frame: name, numpy's name of its dtype (``"object"``: BYTES), shape."""

_LENGTH = struct.Struct("<I")

# --- from the server ---


class DecodeJson(NamedTuple):
    """Has a request read; its body is the only buffer."""

    header_length: int | None
    """The value of Inference-Header-Content-Length."""


class DecodeProtobuf(NamedTuple):
    """Has a ModelInferRequest read; it is the only buffer."""


class EncodeJson(NamedTuple):
    """Has outputs written as JSON."""

    arrays: list[ArrayHead]
    datatypes: dict[str, str]


class Invoke(NamedTuple):
    """Has MLflow's application answer; the request's body is the only buffer."""

    version: ServedVersion
    scope: dict[str, Any]
    """ASGI's."""


class Predicted(NamedTuple):
    """Answers :class:`Predict`."""

    arrays: list[ArrayHead]


# --- from the process ---


class Started(NamedTuple):
    """The process is there."""


class DecodedRequest(NamedTuple):
    """Answers both kinds of request to read."""

    id: str
    inputs: list[ArrayHead]
    datatypes: dict[str, str]
    outputs: list[tuple[str, bool]] | None
    """Name, and whether it is wanted as binary data."""
    binary: bool
    timeout: float | None
    model: str
    """What a ModelInferRequest names; JSON names none."""
    version: str

    @classmethod
    def of(
        cls, request: InferenceRequest, model: str = "", version: str = ""
    ) -> tuple[DecodedRequest, Sequence[Buffer]]:
        """Takes a request apart."""
        heads, buffers = pack(request.inputs)
        outputs = None if request.outputs is None else [(wanted.name, wanted.binary) for wanted in request.outputs]
        fields = (request.id, heads, request.datatypes, outputs, request.binary, request.timeout, model, version)
        return cls(*fields), buffers

    def request(self, buffers: Sequence[Buffer]) -> InferenceRequest:
        """Puts the request together again."""
        return InferenceRequest(
            id=self.id,
            inputs=unpack(self.inputs, buffers),
            datatypes=self.datatypes,
            outputs=None if self.outputs is None else tuple(RequestedOutput(*wanted) for wanted in self.outputs),
            binary=self.binary,
            timeout=self.timeout,
        )


class EncodedJson(NamedTuple):
    """Answers :class:`EncodeJson`; of each output its elements are a buffer."""


class Predict(NamedTuple):
    """MLflow's application asks the model."""

    arrays: list[ArrayHead]


class Invoked(NamedTuple):
    """Answers :class:`Invoke`; the body's parts are the buffers."""

    status: int
    headers: dict[str, str]
    media: str


# --- from either ---


class CodecFailed(NamedTuple):
    """Answers anything with an error."""

    error: ErrorParts


CodecMessage = Union[
    DecodeJson,
    DecodeProtobuf,
    EncodeJson,
    Invoke,
    Predicted,
    Started,
    DecodedRequest,
    EncodedJson,
    Predict,
    Invoked,
    CodecFailed,
]

_TYPES: tuple[Any, ...] = get_args(CodecMessage)
_NUMBERS = {kind: number for number, kind in enumerate(_TYPES)}
_NESTED: dict[Any, tuple[Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    Invoke: (
        lambda message: (message.version.to_plain(), message.scope),
        lambda version, scope: Invoke(ServedVersion.from_plain(version), scope),
    ),
    CodecFailed: (lambda message: (tuple(message.error),), lambda error: CodecFailed(ErrorParts(*error))),
}
"""How those are written and read whose fields are not all plain values."""


def send(end: socket.socket, message: CodecMessage, buffers: Sequence[Buffer] = ()) -> None:
    """Sends a frame; the interpreter is free meanwhile."""
    views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    kind = type(message)
    fields: Any = _NESTED[kind][0](message) if kind in _NESTED else tuple(message)
    head = marshal.dumps((_NUMBERS[kind], fields, sizes))
    end.sendall(_LENGTH.pack(len(head)) + head)
    for view in views:
        end.sendall(view)


def receive(end: socket.socket) -> tuple[CodecMessage, list[memoryview]]:
    """Receives a frame.

    Raises:
        EOFError: The other side is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    number, fields, sizes = marshal.loads(_exactly(end, length))
    kind = _TYPES[number]
    message: CodecMessage = (_NESTED[kind][1] if kind in _NESTED else kind)(*fields)
    return message, [_exactly(end, size) for size in sizes]


def pack(arrays: Arrays) -> tuple[list[ArrayHead], list[Buffer]]:
    """Takes arrays apart for a frame: their heads, and their bytes."""
    heads: list[ArrayHead] = []
    buffers: list[Buffer] = []
    for name, array in arrays.items():
        heads.append((name, array.dtype.name, array.shape))
        if array.dtype == object:
            buffers.append(datatypes.to_raw(array, "BYTES"))
        else:
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))  # a dtype's name has no byte order
            buffers.append(native.reshape(-1).view("u1").data)
    return heads, buffers


def unpack(heads: Sequence[ArrayHead], buffers: Sequence[Buffer]) -> dict[str, np.ndarray]:
    """Undoes :func:`pack`; arrays are views of the buffers."""
    arrays = {}
    for (name, dtype, shape), buffer in zip(heads, buffers):
        if dtype == "object":
            arrays[name] = datatypes.from_raw(name, "BYTES", tuple(shape), buffer)
        else:
            arrays[name] = np.frombuffer(buffer, dtype).reshape(shape)
    return arrays


def _exactly(end: socket.socket, size: int) -> memoryview:
    received: memoryview = np.empty(size, np.uint8).data  # its pages are touched as the bytes come, not all at once
    place = 0
    while place < size:
        count = end.recv_into(received[place : place + (1 << 20)])
        if not count:
            raise EOFError
        place += count
    return received
