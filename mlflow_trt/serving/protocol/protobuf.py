"""The Open Inference Protocol as it travels over gRPC: protobuf messages to requests, answers to protobuf messages.

Pure functions. The message classes are made at import from the compiled ``open_inference.proto``, in a descriptor pool
of their own: other packages (Triton's client, KServe) register messages of the same names in protobuf's common one.

Raw data is read and written here, not by protobuf, which would copy every tensor twice. That is possible because a
message is its fields one after the other, and a repeated field's entries may stand anywhere among them.

Responses always hold raw data, whatever the request held, as Triton's do: its client reads nothing else but strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ...plan.dtypes import TABLE
from ...plan.manifest import Interface
from . import json_body
from .datatypes import DATATYPES, NAMES, ProtocolError, check_datatype, check_shape, from_raw, show, to_raw
from .inference_request import MOST, SLOW, InferenceRequest, check_sent

SERVICE = "inference.GRPCInferenceService"

_LENGTH_DELIMITED = 2
_CONTENTS = {d.protocol: d.contents for d in TABLE if d.protocol and d.contents}
"""A datatype → the field that holds its elements, where they are not raw."""


def new_pool() -> descriptor_pool.DescriptorPool:
    """Returns a descriptor pool that holds the protocol and nothing else."""
    pool = descriptor_pool.DescriptorPool()
    compiled = Path(__file__).with_name("open_inference.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = new_pool()
METHODS: Mapping[str, Any] = _pool.FindServiceByName(SERVICE).methods_by_name
"""The service's methods: name → descriptor."""


def message(name: str) -> Any:
    """Returns the class of a message of the protocol, such as ``"ModelInferRequest"``."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")


def _raw_tag(kind: Any, field: str) -> int:
    return int(kind.DESCRIPTOR.fields_by_name[field].number) << 3 | _LENGTH_DELIMITED


_RAW_INPUT = _raw_tag(ModelInferRequest, "raw_input_contents")
_RAW_OUTPUT = _raw_tag(ModelInferResponse, "raw_output_contents")


def parse(kind: Any, data: bytes) -> Any:
    """Reads a message.

    Args:
        kind: Its class.
        data: What came.

    Raises:
        ProtocolError: It is none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(
            f"The request is not a {kind.DESCRIPTOR.name}.", "a message of open_inference.proto", "correct the client"
        ) from error


def split(data: bytes) -> tuple[Any, list[memoryview]]:
    """Reads a ModelInferRequest without its raw data.

    Args:
        data: The message; the raw data are views of it.

    Returns:
        The message without ``raw_input_contents``, and these.

    Raises:
        ProtocolError: It is no such message, or has too many parts.
    """
    return read(*cut(data))


def read(heads: list[bytes | memoryview], raw: list[memoryview]) -> tuple[Any, list[memoryview]]:
    """Reads what :func:`cut` returned; the second half of :func:`split`."""
    request = parse(ModelInferRequest, b"".join(heads))
    if request.raw_input_contents:
        raw = [memoryview(item) for item in request.raw_input_contents[: MOST + 1]]
    if len(request.inputs) + len(request.outputs) + len(request.parameters) > MOST or len(raw) > MOST:
        raise ProtocolError("The request has too many parts.", f"at most {MOST:,} of them", "split the request")
    return request, raw


def decode(message: Any, raw: list[memoryview]) -> InferenceRequest:
    """Makes a request of what ``split`` returned.

    Returns:
        A request whose inputs are views of the raw data, or new arrays of typed contents.

    Raises:
        ProtocolError: It is malformed, or asks for what is not done here.
    """
    if raw and len(raw) != len(message.inputs):
        raise ProtocolError(
            f"The request has {len(message.inputs)} inputs and {len(raw)} raw_input_contents.",
            "one for each input, or none and the contents in each input",
            "send the data of every input in the same way",
        )
    inputs: dict[str, np.ndarray] = {}
    datatypes: dict[str, str] = {}
    for place, entry in enumerate(message.inputs):
        name = entry.name
        if name in inputs:
            raise ProtocolError(f"Input {show(name)} is there twice.", "each one once", "remove one of them")
        if "shared_memory_region" in entry.parameters:
            raise ProtocolError(
                f"Input {show(name)} is to be in shared memory.", "data in the request", "send it in the request"
            )
        datatype = datatypes[name] = check_datatype(name, entry.datatype)
        shape = check_shape(name, list(entry.shape))
        if not raw:
            inputs[name] = _from_contents(name, datatype, shape, entry.contents)
        elif entry.HasField("contents") and entry.contents.ByteSize():  # MLServer's client sends an empty one
            raise ProtocolError(
                f"Input {show(name)} has contents, and the request has raw_input_contents.",
                "one of the two",
                "leave one out",
            )
        else:
            inputs[name] = from_raw(name, datatype, shape, raw[place])
    return replace(_without_inputs(message), inputs=inputs, datatypes=datatypes)


def check(message: Any, interface: Interface) -> None:
    """Refuses strings for a model that has none, before they are taken apart.

    Raises:
        InputError: It has some.
    """
    taken = {tensor.name: tensor for tensor in interface.inputs}
    for entry in message.inputs:
        if entry.datatype == "BYTES" and entry.name in taken:
            check_sent(taken[entry.name], "BYTES")


def is_slow(message: Any, raw: list[memoryview], nbytes: int) -> bool:
    """Whether raw data has more than so many bytes, and of a kind that takes time."""
    return sum(map(len, raw)) > nbytes and any(entry.datatype in SLOW for entry in message.inputs)


def encode(
    request: InferenceRequest, answer: Mapping[str, np.ndarray], interface: Interface, *, model: str, version: str
) -> bytes:
    """Writes the ModelInferResponse to a request.

    Args:
        request: One that ``protocol.fit`` took.
        answer: The model's outputs.
        interface: The model's.
        model: Its name.
        version: The version that answered.
    """
    datatypes = {tensor.name: NAMES[tensor.dtype] for tensor in interface.outputs}
    names = datatypes if request.outputs is None else [wanted.name for wanted in request.outputs]
    response = ModelInferResponse(model_name=model, model_version=version, id=request.id)
    raw: list[bytes | memoryview] = []
    for name in names:
        array = answer[name]
        response.outputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        data = to_raw(array, datatypes[name])
        raw += (_prefix(_RAW_OUTPUT, len(data)), data)
    return b"".join([response.SerializeToString(), *raw])


def _without_inputs(message: Any) -> InferenceRequest:
    """The rest of a request, by the rules that hold for JSON: what a parameter asks for, which outputs are wanted."""
    header = {
        "id": message.id,
        "parameters": _parameters(message),
        "inputs": [],
        "outputs": [{"name": entry.name, "parameters": _parameters(entry)} for entry in message.outputs],
    }
    return json_body.decode(json.dumps(header).encode(), None)


def _parameters(message: Any) -> dict[str, Any]:
    return {
        key: getattr(value, kind)
        for key, value in message.parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> np.ndarray:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise ProtocolError(
            f"Input {show(name)} is {datatype} and has no raw data.",
            "raw_input_contents: the protocol has no other form of this datatype",
            "send it there",
        )
    values = getattr(contents, field)
    others = [other.name for other, _ in contents.ListFields() if other.name != field]
    if others or len(values) != math.prod(shape):
        raise ProtocolError(
            f"Input {show(name)} has {len(values)} {field}" + (f", and {', '.join(others)}." if others else "."),
            f"{math.prod(shape)} of them alone: {datatype} of shape {list(shape)}",
            "correct the contents, the shape or the datatype",
        )
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        array = np.empty(len(values), object)
        array[:] = list(values)
        return array.reshape(shape)
    wide = np.dtype("i4") if field == "int_contents" else np.dtype("u4") if field == "uint_contents" else dtype
    array = np.fromiter(values, wide, len(values))
    if wide != dtype and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ProtocolError(
                f"Input {show(name)} is {datatype} and holds {array.min()} to {array.max()}.",
                f"{limits.min} to {limits.max}",
                "correct the contents or the datatype",
            )
    return array.astype(dtype, copy=False).reshape(shape)


def cut(data: bytes) -> tuple[list[bytes | memoryview], list[memoryview]]:
    """Cuts a ModelInferRequest into what is around its raw data, and these; the first half of :func:`split`.

    All its fields are length-delimited, with one byte for number and type. A message that holds anything else, or more
    than fits in memory, is left whole, for protobuf to read or to refuse.
    """
    whole: tuple[list[bytes | memoryview], list[memoryview]] = ([data], [])
    view, end = memoryview(data), len(data)
    heads: list[bytes | memoryview] = []
    raw: list[memoryview] = []
    start = position = 0
    for _ in range(MOST):
        if position == end:
            heads.append(view[start:])
            return heads, raw
        begin, tag = position, data[position]
        size = shift = 0
        more = True
        while more:
            position += 1
            if position == end or shift > 28:
                return whole
            size |= (data[position] & 0x7F) << shift
            shift += 7
            more = data[position] > 0x7F
        position += 1
        if tag & 0x87 != _LENGTH_DELIMITED or size > end - position:
            return whole
        if tag == _RAW_INPUT:
            heads.append(view[start:begin])
            raw.append(view[position : position + size])
            start = position + size
        position += size
    return whole


def _prefix(tag: int, size: int) -> bytes:
    """What stands before a length-delimited field: its tag, and its size in groups of seven bits."""
    prefix = bytearray([tag])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix)
