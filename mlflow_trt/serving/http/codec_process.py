"""The process that reads and writes large JSON: ``python -m mlflow_trt.serving.http.codec_process DESCRIPTOR``.

The descriptor is its end of the socket to the process that serves. It does one piece of work at a time and ends when
the other end is closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ...errors import TrtError
from .. import logs
from ..error_parts import ErrorParts
from ..protocol import json_body
from ..protocol.datatypes import to_json
from ..served_model import ServedVersion
from . import codec_messages as messages
from .codec_messages import Arrays, Buffer, pack, receive, send, unpack

_logger = logging.getLogger(__name__)

_Answer = tuple[messages.CodecMessage, Sequence[Buffer]]


def _decode_json(message: messages.DecodeJson, body: Buffer) -> _Answer:
    return messages.DecodedRequest.of(json_body.decode(body, message.header_length))


def _decode_protobuf(body: Buffer) -> _Answer:
    from ..protocol import protobuf

    message, raw = protobuf.split(bytes(body))
    return messages.DecodedRequest.of(protobuf.decode(message, raw), message.model_name, message.model_version)


def _encode_json(message: messages.EncodeJson, buffers: Sequence[Buffer]) -> _Answer:
    arrays = unpack(message.arrays, buffers)
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    types = message.datatypes
    texts = [encode(to_json(name, array, types[name])).encode() for name, array in arrays.items()]
    return messages.EncodedJson(), texts


class _Applications:
    """MLflow's application for the version that was asked last."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._version: ServedVersion | None = None
        self._app: Any = None

    def answer(self, message: messages.Invoke, body: Buffer) -> _Answer:
        from . import scoring

        if self._version != message.version:
            self._app = scoring.application(message.version, self._predict)
            self._version = message.version
        response = asyncio.run(scoring.call(self._app, message.scope, bytes(body)))
        return messages.Invoked(response.status, response.headers, response.media), response.parts

    def _predict(self, inputs: Arrays) -> Arrays:
        """Has the other process ask the model; it waits for that and nothing else meanwhile."""
        heads, buffers = pack(inputs)
        send(self._end, messages.Predict(heads), buffers)
        answer, received = receive(self._end)
        match answer:
            case messages.Predicted():
                return unpack(answer.arrays, received)
            case messages.CodecFailed():
                raise answer.error.error()
            case _:
                raise TypeError(f"The server sent {type(answer).__name__}")


def _answer(message: messages.CodecMessage, buffers: Sequence[Buffer], applications: _Applications) -> _Answer:
    match message:
        case messages.DecodeJson():
            return _decode_json(message, buffers[0])
        case messages.DecodeProtobuf():
            return _decode_protobuf(buffers[0])
        case messages.EncodeJson():
            return _encode_json(message, buffers)
        case messages.Invoke():
            return applications.answer(message, buffers[0])
        case _:
            raise TypeError(f"The server sent {type(message).__name__}")


def main(descriptor: int) -> None:
    """Works until the other end is closed."""
    end = socket.socket(fileno=descriptor)
    applications = _Applications(end)
    send(end, messages.Started())
    while True:
        try:
            message, buffers = receive(end)
        except (OSError, EOFError):
            return
        parts: Sequence[Buffer] = []
        answer: messages.CodecMessage
        try:
            answer, parts = _answer(message, buffers, applications)
        except TrtError as error:
            answer = messages.CodecFailed(ErrorParts.of(error))
        except Exception:
            _logger.exception("Large JSON could not be read or written")
            answer = messages.CodecFailed(ErrorParts.of(TrtError("The server failed; its log says more.")))
        try:
            send(end, answer, parts)
        except OSError:
            return
        del message, buffers, answer, parts  # not kept until the next piece comes


if __name__ == "__main__":
    with logs.captured("warning"):
        warnings.resetwarnings()  # ignored until here
        main(int(sys.argv[1]))
