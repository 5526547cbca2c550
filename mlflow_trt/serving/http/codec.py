"""Reads and writes large JSON in a process beside this one.

Python's JSON parser holds the interpreter until it is done: for a body of 100 MB several seconds, in which nothing else
is answered, not even a probe; a thread would not help. So what is large goes to a child process, one piece at a time,
and only waits here. It is started when first needed; what is small never meets it.

Both sides send frames: a dict in :mod:`marshal`'s form, since both ends are the same Python, and then buffers as they
are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import marshal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, Union

import numpy as np

from ... import errors
from ...errors import DeadlineError, TrtError
from .. import logs
from ..protocol import datatypes
from ..protocol.json_body import InferenceRequest, RequestedOutput

_logger = logging.getLogger(__name__)

LARGE = 256 << 10
"""Bytes of JSON: what is smaller is read at once, in about 5 ms at most."""
MANY = 1 << 14
"""Elements that become JSON: the same for answers."""

Buffer = Union[bytes, bytearray, memoryview]
Message = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
_Found = TypeVar("_Found")

_LENGTH = struct.Struct("<I")
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
        """Does :func:`.protocol.decode`'s work."""
        message = {"kind": "decode", "header_length": header_length}
        return await self._run(lambda: request_of(*self._ask(message, [body])))

    async def decode_grpc(self, data: bytes) -> tuple[str, str, InferenceRequest]:
        """Does the work of :func:`.messages.split` and :func:`.messages.decode`.

        Returns:
            The model's name and version that the message names, and the request.
        """

        def read() -> tuple[str, str, InferenceRequest]:
            found, buffers = self._ask({"kind": "decode_grpc"}, [data])
            return found["model"], found["version"], request_of(found, buffers)

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
            described, buffers = pack(arrays)
            _, found = self._ask({"kind": "texts", "arrays": described, "datatypes": dict(types)}, buffers)
            return dict(zip(arrays, found))

        return await self._run(write)

    async def invocations(self, message: Message, body: Buffer, predict: Callable[[Arrays], Arrays]) -> Any:
        """Has MLflow's own application answer; see :mod:`.scoring`.

        Args:
            message: What it needs to know of request and model.
            body: The request's.
            predict: Asks the model; called in another thread.

        Returns:
            What the process sent last, and its buffers.
        """
        return await self._run(lambda: self._ask({**message, "kind": "invocations"}, [body], predict))

    def close(self) -> None:
        """Ends the process; a piece under way is lost."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._kill()

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    async def _run(self, work: Callable[[], _Found]) -> _Found:
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            # Beyond that time it waits for others' pieces; once it has begun, the socket's own timeout ends it.
            return await asyncio.wait_for(future, 2 * self._timeout)
        except TimeoutError:
            raise _late(self._timeout) from None

    def _ask(
        self, message: Message, buffers: Sequence[Buffer], predict: Callable[[Arrays], Arrays] | None = None
    ) -> tuple[Message, list[memoryview]]:
        """Sends a piece and returns what comes back. Called by the one thread alone."""
        try:
            found, received = self._exchange(self._open(), message, buffers, predict)
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
        if found["kind"] == "error":
            raise error_of(found)
        return found, received

    def _exchange(
        self,
        end: socket.socket,
        message: Message,
        buffers: Sequence[Buffer],
        predict: Callable[[Arrays], Arrays] | None,
    ) -> tuple[Message, list[memoryview]]:
        deadline = time.monotonic() + self._timeout
        while True:
            end.settimeout(max(deadline - time.monotonic(), 0.001))
            send(end, message, buffers)
            found, received = receive(end)
            if found["kind"] != "predict" or predict is None:
                return found, received
            try:
                described, buffers = pack(predict(unpack(found["arrays"], received)))
                message = {"kind": "outputs", "arrays": described}
            except TrtError as error:
                message, buffers = message_of(error), []

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


def send(end: socket.socket, message: Message, buffers: Sequence[Buffer] = ()) -> None:
    """Sends a frame; the interpreter is free meanwhile."""
    views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    head = marshal.dumps({**message, "sizes": sizes})
    end.sendall(_LENGTH.pack(len(head)) + head)
    for view in views:
        end.sendall(view)


def receive(end: socket.socket) -> tuple[Message, list[memoryview]]:
    """Receives a frame.

    Raises:
        EOFError: The other side is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    message: Message = marshal.loads(_exactly(end, length))
    return message, [_exactly(end, size) for size in message.pop("sizes")]


def pack(arrays: Arrays) -> tuple[list[Any], list[Buffer]]:
    """Takes arrays apart for a frame: name, dtype and shape of each, and their bytes."""
    described: list[Any] = []
    buffers: list[Buffer] = []
    for name, array in arrays.items():
        datatype = "BYTES" if array.dtype == object else ""
        described.append((name, array.dtype.name, array.shape))
        buffers.append(
            datatypes.to_raw(array, datatype) if datatype else np.ascontiguousarray(array).reshape(-1).view("u1").data
        )
    return described, buffers


def unpack(described: Sequence[Any], buffers: Sequence[Buffer]) -> dict[str, np.ndarray]:
    """Undoes :func:`pack`; arrays are views of the buffers."""
    found = {}
    for (name, dtype, shape), buffer in zip(described, buffers):
        if dtype == "object":
            found[name] = datatypes.from_raw(name, "BYTES", tuple(shape), buffer)
        else:
            found[name] = np.frombuffer(buffer, dtype).reshape(shape)
    return found


def message_of_request(request: InferenceRequest) -> tuple[Message, list[Buffer]]:
    """Takes a request apart for a frame."""
    described, buffers = pack(request.inputs)
    outputs = None if request.outputs is None else [(wanted.name, wanted.binary) for wanted in request.outputs]
    fields = {name: getattr(request, name) for name in ("id", "datatypes", "binary", "timeout")}
    return {"kind": "request", **fields, "outputs": outputs, "arrays": described}, buffers


def request_of(message: Message, buffers: Sequence[Buffer]) -> InferenceRequest:
    """Undoes :func:`message_of_request`."""
    outputs = message["outputs"]
    return InferenceRequest(
        inputs=unpack(message["arrays"], buffers),
        outputs=None if outputs is None else tuple(RequestedOutput(*wanted) for wanted in outputs),
        **{name: message[name] for name in ("id", "datatypes", "binary", "timeout")},
    )


def message_of(error: TrtError) -> Message:
    """An error of this package, for a frame."""
    return {
        "kind": "error",
        "type": type(error).__name__,
        "parts": [str(part) for part in (error.found, error.expected, error.remedy)],
    }


def error_of(message: Message) -> TrtError:
    """Undoes :func:`message_of`."""
    kind = datatypes.ProtocolError if message["type"] == "ProtocolError" else getattr(errors, message["type"], TrtError)
    found: TrtError = kind(*message["parts"])
    return found


def _exactly(end: socket.socket, size: int) -> memoryview:
    found: memoryview = np.empty(size, np.uint8).data  # its pages are touched as the bytes come, not all at once
    place = 0
    while place < size:
        count = end.recv_into(found[place : place + (1 << 20)])
        if not count:
            raise EOFError
        place += count
    return found


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(
        f"Its JSON was not read or written within {seconds:g} s.",
        "an answer within the time that it was given",
        "send tensors as binary data, which take no reading, or split the request",
    )
