"""Reads and writes large JSON in a process beside this one.

Python's JSON parser holds the interpreter until it is done: for a body of 100 MB several seconds, in which nothing else
is answered, not even a probe; a thread would not help. So what is large goes to a child process, one piece at a time,
and only waits here. It is started when first needed; what is small never meets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ...errors import DeadlineError, TrtError
from .. import logs
from ..error_parts import ErrorParts
from ..protocol.inference_request import InferenceRequest
from ..served_model import ServedVersion
from . import codec_messages as messages
from .codec_messages import Arrays, Buffer, pack, receive, send, unpack
from .request import Response

_logger = logging.getLogger(__name__)

LARGE = 256 << 10
"""Bytes of JSON: what is smaller is read at once, in about 5 ms at most."""
MANY = 1 << 14
"""Elements that become JSON: the same for answers."""

_Result = TypeVar("_Result")
_Message = TypeVar("_Message", bound=tuple[Any, ...])

_STARTING = 60.0
"""Seconds that a process may take to start; a request's own time does not count meanwhile."""


class Codec:
    """The process, as the one that serves sees it.

    Args:
        timeout: Seconds that a piece may take, its wait for others included.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self._process: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None

    async def decode(self, body: Buffer, header_length: int | None) -> InferenceRequest:
        """Does :func:`.json_body.decode`'s work."""

        def read() -> InferenceRequest:
            decoded, buffers = self._ask(messages.DecodedRequest, messages.DecodeJson(header_length), [body])
            return decoded.request(buffers)

        return await self._run(read)

    async def decode_grpc(self, data: bytes) -> tuple[str, str, InferenceRequest]:
        """Does the work of :func:`.protobuf.split` and :func:`.protobuf.decode`.

        Returns:
            The model's name and version that the message names, and the request.
        """

        def read() -> tuple[str, str, InferenceRequest]:
            decoded, buffers = self._ask(messages.DecodedRequest, messages.DecodeProtobuf(), [data])
            return decoded.model, decoded.version, decoded.request(buffers)

        return await self._run(read)

    async def texts(self, arrays: Arrays, types: Mapping[str, str]) -> dict[str, Buffer]:
        """Does :func:`.datatypes.to_json`'s work.

        Args:
            arrays: Outputs by name.
            types: Their datatypes.

        Returns:
            Of each its elements as a JSON array.
        """

        def write() -> dict[str, Buffer]:
            heads, buffers = pack(arrays)
            _, texts = self._ask(messages.EncodedJson, messages.EncodeJson(heads, dict(types)), buffers)
            return dict(zip(arrays, texts))

        return await self._run(write)

    async def invocations(
        self, version: ServedVersion, scope: dict[str, Any], body: Buffer, predict: Callable[[Arrays], Arrays]
    ) -> Response:
        """Has MLflow's own application answer; see :mod:`.scoring`.

        Args:
            version: What it answers for.
            scope: ASGI's, of plain values.
            body: The request's.
            predict: Asks the model; called in another thread.
        """

        def answer() -> Response:
            invoked, parts = self._ask(messages.Invoked, messages.Invoke(version, scope), [body], predict)
            return Response(invoked.status, parts, invoked.headers, invoked.media)

        return await self._run(answer)

    def close(self) -> None:
        """Ends the process; a piece under way is lost."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._kill()

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            # Beyond that time it waits for others' pieces; once it has begun, the socket's own timeout ends it.
            return await asyncio.wait_for(future, 2 * self._timeout)
        except TimeoutError:
            raise _late(self._timeout) from None

    def _ask(
        self,
        kind: type[_Message],
        message: messages.CodecMessage,
        buffers: Sequence[Buffer],
        predict: Callable[[Arrays], Arrays] | None = None,
    ) -> tuple[_Message, list[memoryview]]:
        """Sends a piece and returns what comes back, of the kind that answers it. Called by the one thread alone."""
        try:
            answer, received = self._exchange(self._open(), message, buffers, predict)
        except TimeoutError:
            self._kill()
            raise _late(self._timeout) from None
        except (OSError, EOFError) as error:
            self._kill()
            _logger.error("The process that reads and writes large JSON ended", extra={"event": "codec_ended"})
            raise TrtError(
                "The process that reads and writes large JSON ended.", "an answer", "see the server's log"
            ) from error
        except BaseException:
            self._kill()  # it waits for what will not come
            raise
        if isinstance(answer, messages.CodecFailed):
            raise answer.error.error()
        if not isinstance(answer, kind):
            raise TypeError(f"The process that reads and writes large JSON sent {type(answer).__name__}")
        return answer, received

    def _exchange(
        self,
        end: socket.socket,
        message: messages.CodecMessage,
        buffers: Sequence[Buffer],
        predict: Callable[[Arrays], Arrays] | None,
    ) -> tuple[messages.CodecMessage, list[memoryview]]:
        deadline = time.monotonic() + self._timeout
        while True:
            end.settimeout(max(deadline - time.monotonic(), 0.001))
            send(end, message, buffers)
            answer, received = receive(end)
            if not isinstance(answer, messages.Predict) or predict is None:
                return answer, received
            try:
                heads, buffers = pack(predict(unpack(answer.arrays, received)))
                message = messages.Predicted(heads)
            except TrtError as error:
                message, buffers = messages.CodecFailed(ErrorParts.of(error)), []

    def _open(self) -> socket.socket:
        if self._end is not None and self._process is not None and self._process.poll() is None:
            return self._end
        self._kill()
        self._end, its_end = socket.socketpair()
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, *logs.QUIET, "-m", __package__ + ".codec_process", str(its_end.fileno())],
                pass_fds=[its_end.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=logs.descriptor(),
                start_new_session=True,  # Ctrl-C in a terminal reaches the server, which ends in order
            )
        self._end.settimeout(_STARTING)
        receive(self._end)  # that it is there
        return self._end

    def _kill(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self._process = None


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(
        f"Its JSON was not read or written within {seconds:g} s.",
        "an answer within the time that it was given",
        "send tensors as binary data, which take no reading, or split the request",
    )
