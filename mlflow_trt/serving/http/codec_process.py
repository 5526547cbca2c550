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
from ..protocol import json_body
from ..protocol.datatypes import to_json
from . import codec
from .codec import Arrays, Buffer, Message

_logger = logging.getLogger(__name__)


def _decode(message: Message, body: Buffer) -> tuple[Message, list[Buffer]]:
    return codec.message_of_request(json_body.decode(body, message["header_length"]))


def _decode_grpc(body: Buffer) -> tuple[Message, list[Buffer]]:
    from ..protocol import protobuf

    found, raw = protobuf.split(bytes(body))
    answer, buffers = codec.message_of_request(protobuf.decode(found, raw))
    return {**answer, "model": found.model_name, "version": found.model_version}, buffers


def _texts(message: Message, buffers: Sequence[Buffer]) -> tuple[Message, list[Buffer]]:
    datatypes = message["datatypes"]
    arrays = codec.unpack(message["arrays"], buffers)
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    texts: list[Buffer] = [encode(to_json(name, array, datatypes[name])).encode() for name, array in arrays.items()]
    return {"kind": "texts"}, texts


class _Applications:
    """MLflow's application for the model that was asked last."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._model: Any = None
        self._app: Any = None

    def answer(self, message: Message, body: Buffer) -> tuple[Message, list[Buffer]]:
        from . import scoring

        if self._model != message["model"]:
            self._app = scoring.application(scoring.Described.of(message["model"]), self._predict)
            self._model = message["model"]
        response = asyncio.run(scoring.call(self._app, message["scope"], bytes(body)))
        answer = {"kind": "response", "status": response.status, "headers": response.headers, "media": response.media}
        return answer, list(response.parts)

    def _predict(self, inputs: Arrays) -> Arrays:
        """Has the other process ask the model; it waits for that and nothing else meanwhile."""
        described, buffers = codec.pack(inputs)
        codec.send(self._end, {"kind": "predict", "arrays": described}, buffers)
        found, received = codec.receive(self._end)
        if found["kind"] == "error":
            raise codec.error_of(found)
        return codec.unpack(found["arrays"], received)


def main(descriptor: int) -> None:
    """Works until the other end is closed."""
    end = socket.socket(fileno=descriptor)
    applications = _Applications(end)
    codec.send(end, {"kind": "ready"})
    while True:
        try:
            message, buffers = codec.receive(end)
        except (OSError, EOFError):
            return
        found: list[Buffer] = []
        try:
            kind = message["kind"]
            if kind == "decode":
                answer, found = _decode(message, buffers[0])
            elif kind == "decode_grpc":
                answer, found = _decode_grpc(buffers[0])
            elif kind == "texts":
                answer, found = _texts(message, buffers)
            else:
                answer, found = applications.answer(message, buffers[0])
        except TrtError as error:
            answer = codec.message_of(error)
        except Exception:
            _logger.exception("Large JSON could not be read or written")
            answer = codec.message_of(TrtError("The server failed; its log says more."))
        try:
            codec.send(end, answer, found)
        except OSError:
            return
        del message, buffers, answer, found  # not kept until the next piece comes


if __name__ == "__main__":
    with logs.captured("warning"):
        warnings.resetwarnings()  # ignored until here
        main(int(sys.argv[1]))
