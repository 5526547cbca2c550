"""The Open Inference Protocol v2 as it travels over HTTP: JSON, and Triton's binary tensor data extension.

Pure functions. A request is a JSON object, behind which the raw data of those inputs follows, in their order, that have
a ``binary_data_size``; the header Inference-Header-Content-Length tells where the JSON ends. A response is built the
same way. Raw data is copied neither on its way in nor on its way out.

What the protocol leaves open: a scalar has the shape ``[]``. FP16 and BF16 may come as JSON too. JSON holds no NaN and
no infinity: requests send such values as binary data, and in a response they are the strings ``"NaN"``, ``"Infinity"``
and ``"-Infinity"``. Empty ``data`` beside a ``binary_data_size`` is none. Unknown parameters are passed over; those
that ask for what is not done here are refused: state that is kept from one request to the next, shared memory,
classification.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ...plan.manifest import Interface
from .datatypes import NAMES, ProtocolError, check_datatype, check_shape, from_json, from_raw, show, to_json, to_raw
from .inference_request import MOST, SLOW, InferenceRequest, RequestedOutput, check_sent

_DAY = 86_400_000_000  # microseconds; what waits for longer would overflow Python's own waiting


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request whose JSON was read, and whose tensors were not."""

    header: dict[str, Any]
    entries: list[dict[str, Any]]
    """Of the inputs."""
    view: memoryview
    """The whole body."""
    offset: int
    """Where the JSON ends."""
    all_json: bool

    def is_slow(self, nbytes: int) -> bool:
        """Whether its raw data has more than so many bytes, and of a kind that takes time."""
        large = len(self.view) - self.offset > nbytes
        return large and any(entry.get("datatype") in SLOW for entry in self.entries)

    def check(self, interface: Interface) -> None:
        """Refuses strings for a model that has none, before they are taken apart.

        Raises:
            InputError: It has some.
        """
        if any(entry.get("datatype") == "BYTES" for entry in self.entries):
            taken = {tensor.name: tensor for tensor in interface.inputs}
            for entry in self.entries:
                tensor = taken.get(str(entry.get("name")))
                if tensor is not None and entry.get("datatype") == "BYTES":
                    check_sent(tensor, "BYTES")


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response's body."""

    parts: list[bytes | memoryview]
    """To be sent one after the other."""
    header_length: int | None
    """The value of Inference-Header-Content-Length, bytes; None: all of it is JSON, and the header is not set."""


def decode(body: bytes | bytearray | memoryview, header_length: int | None) -> InferenceRequest:
    """Reads an inference request.

    Args:
        body: The whole body. Inputs that came as raw data are views of it: leave it unchanged as long as they are used.
        header_length: Inference-Header-Content-Length, bytes; None: the header was not sent.

    Raises:
        ProtocolError: It is malformed, or asks for what is not done here.
    """
    return read(parse(body, header_length))


def parse(body: bytes | bytearray | memoryview, header_length: int | None) -> ParsedRequest:
    """Reads a request's JSON; the first half of :func:`decode`."""
    view = memoryview(body)
    end = len(view)
    if header_length is not None and not 0 < header_length <= end:
        raise ProtocolError(
            f"Inference-Header-Content-Length is {header_length} and the body has {end} bytes.",
            "the length of the JSON part, 1 to the length of the body",
            "send the length of the JSON part in bytes",
        )
    offset = end if header_length is None else header_length
    header = _parse(view[:offset])
    entries = _objects(header.get("inputs"), "inputs")
    if len(entries) > MOST:
        raise ProtocolError(f"The request has {len(entries):,} inputs.", f"at most {MOST:,}", "split the request")
    return ParsedRequest(header, entries, view, offset, header_length is None)


def read(parsed: ParsedRequest) -> InferenceRequest:
    """Reads a request's tensors; the second half of :func:`decode`."""
    header, view, offset = parsed.header, parsed.view, parsed.offset
    end = len(view)
    parameters = _parameters(header, "The request")
    if any(parameters.get(key) for key in ("sequence_id", "sequence_start", "sequence_end")):
        raise ProtocolError(
            "The request is part of a sequence.",
            "requests that don't depend on each other: no state is kept between them",
            "send it without sequence_id, sequence_start and sequence_end",
        )
    inputs: dict[str, np.ndarray] = {}
    datatypes: dict[str, str] = {}
    for entry in parsed.entries:
        name = _text(entry.get("name"), "An input's name")
        if name in inputs:
            raise _twice("Input", name)
        datatype = datatypes[name] = check_datatype(name, entry.get("datatype"))
        shape = check_shape(name, entry.get("shape"))
        size = _binary_size(name, entry)
        if size is None:
            inputs[name] = from_json(name, datatype, shape, entry.get("data"))
            continue
        if size > end - offset:
            raise ProtocolError(
                f"Input {show(name)} says {show(size)} bytes of binary data, and "
                + ("the body is all JSON." if parsed.all_json else f"{end - offset} are left in the body."),
                "the data of all inputs behind the JSON, whose length Inference-Header-Content-Length tells",
                "send the header, and all of the data",
            )
        inputs[name] = from_raw(name, datatype, shape, view[offset : offset + size])
        offset += size
    if offset != end:
        raise ProtocolError(
            f"The body has {end - offset} bytes behind the last input.",
            "nothing after the data of the inputs",
            "correct Inference-Header-Content-Length and each binary_data_size",
        )
    binary = _flag(parameters, "binary_data_output", False)
    return InferenceRequest(
        id="" if header.get("id") is None else _text(header["id"], "The request's id"),
        inputs=inputs,
        datatypes=datatypes,
        outputs=_wanted(header.get("outputs"), binary),
        binary=binary,
        timeout=_timeout(parameters.get("timeout")),
    )


def as_json(request: InferenceRequest, answer: Mapping[str, np.ndarray], interface: Interface) -> dict[str, np.ndarray]:
    """The outputs that a response holds as JSON."""
    if request.outputs is None:
        return {} if request.binary else {tensor.name: answer[tensor.name] for tensor in interface.outputs}
    return {wanted.name: answer[wanted.name] for wanted in request.outputs if not wanted.binary}


def encode(
    request: InferenceRequest,
    answer: Mapping[str, np.ndarray],
    interface: Interface,
    *,
    model: str,
    version: str,
    texts: Mapping[str, bytes | bytearray | memoryview] | None = None,
) -> EncodedResponse:
    """Writes the response to a request.

    Args:
        request: One that ``fit`` took.
        answer: The model's outputs. Those sent as raw data are not copied: leave them unchanged until they are sent.
        interface: The model's.
        model: Its name.
        version: The version that answered.
        texts: Data of outputs that was made JSON already.
    """
    wanted = request.outputs or [RequestedOutput(tensor.name, request.binary) for tensor in interface.outputs]
    datatypes = {tensor.name: NAMES[tensor.dtype] for tensor in interface.outputs}
    header: dict[str, Any] = {"id": request.id} if request.id else {}
    outputs: list[dict[str, Any]] = []
    header.update(model_name=model, model_version=version, outputs=outputs)
    raw: list[bytes | memoryview] = []
    for output in wanted:
        name, array, datatype = output.name, answer[output.name], datatypes[output.name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if output.binary:
            raw.append(to_raw(array, datatype))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        elif texts is None:
            entry["data"] = to_json(name, array, datatype)
        outputs.append(entry)
    if texts is not None:
        parts = _around(header, texts)
        return EncodedResponse([*parts, *raw], sum(map(len, parts)) if raw else None)
    text = _ENCODER.encode(header).encode()
    return EncodedResponse([text, *raw], len(text) if raw else None)


def error_body(message: str) -> bytes:
    """Returns the body of an error response, ASCII on one line whatever the message holds."""
    return json.dumps({"error": message}).encode()


def _around(header: dict[str, Any], texts: Mapping[str, bytes | bytearray | memoryview]) -> list[bytes | memoryview]:
    """The JSON of a response, around data that is JSON already."""
    outputs = header.pop("outputs")
    parts: list[bytes | memoryview] = [_ENCODER.encode(header)[:-1].encode() + b',"outputs":[']
    for place, entry in enumerate(outputs):
        text = _ENCODER.encode(entry).encode()
        parts.append(b"," * (place > 0) + text[:-1])
        if "parameters" not in entry:
            parts += [b',"data":', memoryview(texts[entry["name"]])]
        parts.append(b"}")
    return [*parts, b"]}"]


def _parse(text: memoryview) -> dict[str, Any]:
    try:
        header = _DECODER.decode(str(text, "utf-8"))
    except UnicodeDecodeError as error:
        raise _no_json("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg}, at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise _no_json("it is nested too deep or has an integer of too many digits") from error
    if not isinstance(header, dict):
        raise _no_json(f"it is {show(header)}")
    return header


def _no_json(why: str) -> ProtocolError:
    return ProtocolError(
        f"The request is not a JSON object: {why}.",
        "a JSON object; where binary data follows it, Inference-Header-Content-Length tells its length",
        "correct the JSON, or send that header",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _twice("The key", next(key for key, count in counts.items() if count > 1))
    return members


def _no_constant(word: str) -> NoReturn:
    raise ProtocolError(
        f"The JSON holds {word}.", "numbers, which are all that JSON has", "send such values as binary data"
    )


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _parameters(holder: dict[str, Any], what: str, name: str | None = None) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if isinstance(parameters, dict) and "shared_memory_region" not in parameters:
        return parameters
    what = what if name is None else f"{what} {show(name)}"
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{what} has {show(parameters)} as its parameters.", "an object", "correct it")
    raise ProtocolError(
        f"{what} is to be in shared memory.", "data in the body, JSON or binary", "send and ask for it in the body"
    )


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"The parameter {key} is {show(value)}.", "true or false", "correct it")
    return value


def _objects(entries: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        what = f"has no {key}" if entries is None else f"has {key} that are no array of objects"
        raise ProtocolError(
            f"The request {what}.", f'"{key}": an array with an object for each tensor', "correct the request"
        )
    return entries


def _text(value: Any, what: str) -> str:
    try:
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair passes the JSON parser, but can't be sent back or logged
            return value
    except UnicodeEncodeError:
        pass
    raise ProtocolError(f"{what} is {show(value)}.", "a string that UTF-8 can encode", "correct it")


def _binary_size(name: str, entry: dict[str, Any]) -> int | None:
    """How many bytes of raw data an input has; None: its data is in the JSON."""
    size = _parameters(entry, "Input", name).get("binary_data_size")
    if size is None:
        return None
    data = entry.get("data")
    given = data is not None and data != []
    if type(size) is not int or size < 0 or given:
        raise ProtocolError(
            f"Input {show(name)} has data and binary_data_size."
            if given
            else f"Input {show(name)} has the binary_data_size {show(size)}.",
            "a number of bytes and no data, or data and no binary_data_size",
            "correct it",
        )
    return size


def _wanted(entries: Any, binary: bool) -> tuple[RequestedOutput, ...] | None:
    if entries is None or entries == []:  # Triton takes an empty list as all outputs too
        return None
    wanted: dict[str, RequestedOutput] = {}
    if len(objects := _objects(entries, "outputs")) > MOST:
        raise ProtocolError(f"The request asks for {len(objects):,} outputs.", f"at most {MOST:,}", "split the request")
    for entry in objects:
        name = _text(entry.get("name"), "An output's name")
        if name in wanted:
            raise _twice("Output", name)
        parameters = _parameters(entry, "Output", name)
        if parameters.get("classification"):
            raise ProtocolError(
                f"Output {show(name)} is asked for as a classification.",
                "outputs as they are: the model's labels are not known here",
                "ask without classification, and sort the scores in the client",
            )
        wanted[name] = RequestedOutput(name, _flag(parameters, "binary_data", binary))
    return tuple(wanted.values())


def _timeout(microseconds: Any) -> float | None:
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise ProtocolError(
            f"The parameter timeout is {show(microseconds)}.", "microseconds, an integer", "correct it or leave it out"
        )
    return min(microseconds, _DAY) / 1e6 or None  # 0 is Triton's word for none


def _twice(what: str, name: str) -> ProtocolError:
    return ProtocolError(f"{what} {show(name)} is there twice.", "each one once", "remove one of them")
