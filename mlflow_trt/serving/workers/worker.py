"""A process that speaks HTTP for a server whose engines live in another: reading requests takes longer than answering
them, and one interpreter reads no more than about a thousand images a second.

``python -m mlflow_trt.serving.workers.worker IPC CONNECTIONS REQUESTS ANSWERS SIZE``: descriptors of its end of the
IPC connection, of the socket through which it is handed clients' connections, and of the two areas of shared memory,
and the bytes of each of these. It puts the tensors of a request into the one area, tells where they lie, and is told
where the answer lies in the other. It ends when the IPC connection does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from ... import errors
from ...errors import BusyError, TrtError
from ...plan.api import Result
from ...plan.manifest import Interface, Profile
from .. import logs
from ..batching.queue import Answer
from ..http.listening import new_loop, settle, tune_process
from ..limits import Limits
from ..shutdown import Shutdown
from .ipc import IpcConnection, Message
from .shared_memory import SharedMemory

if TYPE_CHECKING:
    from ..http.app import Application

_logger = logging.getLogger(__name__)

_LOOK = 0.05
"""Seconds between looks at how many connections there are."""
_PROFILES = TypeAdapter(tuple[Profile, ...])


class RemoteVersion:
    """What a request needs to know of the version that answers; complete once it has answered."""

    def __init__(self, state: Message) -> None:
        self.uri: str = state["uri"]
        self.version: str = state["version"]
        self.platform: str = state["platform"]
        self.interface = Interface.model_validate(state["interface"])
        self.mlmodel: str | None = state["mlmodel"]
        self.profiles = _PROFILES.validate_python(state["profiles"])

    def become(self, other: RemoteVersion) -> None:
        """Takes over what another one is."""
        self.__dict__.update(other.__dict__)


class RemoteModel:
    """A model of the other process, with the methods of :class:`~.versions.served.Model` that requests need."""

    def __init__(self, name: str, engines: EngineProcess) -> None:
        self.name = name
        self.registered_model: str | None = None
        self._engines = engines
        self._status: dict[str, Any] = {"name": name, "state": "loading"}
        self._current: RemoteVersion | None = None
        self._versions: dict[str, RemoteVersion] = {}

    @property
    def current(self) -> RemoteVersion:
        """The version that answers now.

        Raises:
            BusyError: None has been made ready yet.
        """
        if self._current is None:
            raise BusyError(f"The model {self.name} is not loaded yet.", "a model that is ready", "try again later")
        return self._current

    def status(self) -> dict[str, Any]:
        """How things stood lately."""
        return self._status

    def refresh(self) -> None:
        """Has the registry looked at now."""
        self._engines.send({"kind": "refresh", "model": self.name})

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> tuple[RemoteVersion, Future[Answer]]:
        """Queues a request in the other process; the version is the one that answered once the future is done."""
        answering = object.__new__(RemoteVersion)
        answering.become(self.current)
        return answering, self._engines.submit(self, answering, inputs, deadline)

    def take(self, state: Message) -> None:
        """Learns how things stand."""
        self._status = state["status"]
        self.registered_model = state["registered_model"]
        if state.get("version"):
            self._current = RemoteVersion(state["version"])
            self._versions[self._current.version] = self._current
            for old in list(self._versions)[:-4]:  # what was replaced is draining, and soon gone
                del self._versions[old]
        elif self._status["state"] != "ready":
            self._current = None

    def answered_by(self, answering: RemoteVersion, version: str) -> None:
        """Completes what a request knows of the version that answered it."""
        if version != answering.version:
            answering.become(self._versions[version])


class EngineProcess:
    """The other process."""

    def __init__(self, requests: SharedMemory, answers: SharedMemory) -> None:
        self.models: dict[str, RemoteModel] = {}
        self.gone = asyncio.Event()
        self.on_drain: Callable[[], None] = lambda: None
        self.configured: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._answers = answers
        self._numbers = itertools.count()
        self._pending: dict[int, _PendingRequest] = {}
        self._ipc: IpcConnection | None = None

    async def connect(self, end: socket.socket) -> Message:
        """Opens the connection; returns the server's configuration."""
        self._ipc = await IpcConnection.open(end, self._take, self.gone.set)
        return await self.configured

    def send(self, message: Message, *, later: bool = False) -> None:
        """Sends a message; later: it need not be there soon."""
        assert self._ipc is not None
        (self._ipc.send_later if later else self._ipc.send)(message)

    def ask(self, kind: str) -> Future[bytes]:
        """Asks for a text, the metrics."""
        number = next(self._numbers)
        pending = self._pending[number] = _PendingRequest((), None, None)
        self.send({"kind": kind, "id": number})
        return pending.future

    def submit(
        self, model: RemoteModel, answering: RemoteVersion, inputs: Mapping[str, np.ndarray], deadline: float | None
    ) -> Future[Answer]:
        """Puts a request's tensors where the other process finds them, and tells it."""
        blocks: list[tuple[int, int]] = []
        described = []
        for name, array in inputs.items():
            offset = self._requests.allocate(array.nbytes)
            if offset is None:
                self._free(blocks)
                raise BusyError("The memory for requests is full.", "room for its tensors", "try again a little later")
            blocks.append((offset, array.nbytes))
            self._requests.array(offset, array.dtype.name, array.shape)[...] = array
            described.append([name, array.dtype.name, array.shape, offset])
        number = next(self._numbers)
        pending = self._pending[number] = _PendingRequest(blocks, model, answering)
        pending.future.add_done_callback(partial(self._settled, number))
        message = {"kind": "infer", "id": number, "model": model.name, "inputs": described, "deadline": deadline}
        self.send(message)
        return pending.future

    def _settled(self, number: int, future: Future[Answer]) -> None:
        if future.cancelled():
            # The other process may be reading the tensors: their memory is free once it says so.
            self.send({"kind": "cancel", "id": number})

    def _take(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "configuration":
            self.configured.set_result(message)
        elif kind == "drain":
            self.on_drain()
        elif kind == "state":
            self.models.setdefault(message["name"], RemoteModel(message["name"], self)).take(message)
        else:
            pending = self._pending.pop(message["id"])
            self._free(pending.blocks)
            outcome = self._outcome(kind, message, pending)
            if pending.future.set_running_or_notify_cancel():
                if isinstance(outcome, Exception):
                    pending.future.set_exception(outcome)
                else:
                    pending.future.set_result(outcome)

    def _outcome(self, kind: str, message: Message, pending: _PendingRequest) -> Any:
        if kind == "error":
            return _error(message)
        arrays = {}
        for name, dtype, shape, offset in message["outputs"]:
            # A copy: the piece is given back at once, and the response may wait for a slow client.
            array = arrays[name] = self._answers.array(offset, dtype, shape).copy()
            self.send({"kind": "free", "piece": (offset, array.nbytes)}, later=True)
        if kind == "text":
            return arrays["text"].tobytes()
        assert pending.model is not None
        assert pending.answering is not None
        pending.model.answered_by(pending.answering, message["version"])
        return Answer(outputs=Result(arrays, message["backend"]), **message["figures"])

    def _free(self, blocks: Sequence[tuple[int, int]]) -> None:
        for offset, nbytes in blocks:
            self._requests.free(offset, nbytes)


class _PendingRequest:
    """A request that the other process has not answered yet."""

    def __init__(
        self, blocks: Sequence[tuple[int, int]], model: RemoteModel | None, answering: RemoteVersion | None
    ) -> None:
        self.blocks = blocks
        self.model = model
        self.answering = answering
        self.future: Future[Any] = Future()


class RemoteMetrics:
    """Has the other process count, and asks it for what Prometheus reads."""

    def __init__(self, engines: EngineProcess) -> None:
        self._engines = engines

    def request(self, model: str, protocol: str, status: int | str, seconds: float | None) -> None:
        """Counts an inference request that ended."""
        self._engines.send({"kind": "count", "request": (model, protocol, status, seconds)}, later=True)

    def cut(self, limit: str) -> None:
        """Counts a connection that was refused or cut off."""
        self._engines.send({"kind": "cut", "limit": limit}, later=True)

    def other(self, route: str, protocol: str, status: int | str) -> None:
        """Counts any other one."""
        self._engines.send({"kind": "count_other", "request": (route, protocol, status)}, later=True)

    def text(self) -> bytes:
        """Returns what Prometheus reads; waits, so not from the event loop."""
        return self._engines.ask("metrics").result(10)


def _error(message: Message) -> Exception:
    kind = getattr(errors, message["type"], TrtError)
    return kind(*message["parts"]) if issubclass(kind, TrtError) else TrtError(*message["parts"])


class Connections:
    """Connections that the other process has accepted, served here.

    Args:
        server: uvicorn's.
        passing: Where they come from.
        engines: Learns how many of them were closed.
        app: What answers on them.
    """

    def __init__(self, server: Any, passing: socket.socket, engines: EngineProcess, app: Application) -> None:
        self._server = server
        self._app = app
        self._passing = passing
        self._engines = engines
        self._taken = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self) -> None:
        """Takes them for as long as it is not cancelled."""
        while not self._server.started:
            await asyncio.sleep(_LOOK)
        settle()
        loop = asyncio.get_running_loop()
        self._passing.setblocking(False)
        loop.add_reader(self._passing.fileno(), self._take)
        told: tuple[int, int] | None = None
        try:
            while True:
                found = (self._taken - len(self._tasks) - self._server.open, self._app.running)
                if found != told:
                    told = found
                    self._engines.send({"kind": "connections", "closed": found[0], "running": found[1]})
                await asyncio.sleep(_LOOK)
        finally:
            loop.remove_reader(self._passing.fileno())

    async def take_last(self) -> None:
        """Takes those that are under way."""
        while self._take():
            pass
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self) -> bool:
        try:
            # As much as was sent with one descriptor.
            _, descriptors, _, _ = socket.recv_fds(self._passing, 1, 1)
        except OSError:  # the connection says if the other process is gone
            return False
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            self._taken += 1
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(loop.connect_accepted_socket(self._server.connection, connection))
            self._tasks.add(task)
            task.add_done_callback(self._connected)
        return bool(descriptors)

    def _connected(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.debug("A connection was gone before it was served: %s", task.exception())


async def _run(end: socket.socket, passing: socket.socket, requests: int, answers: int, size: int) -> None:
    from ..http.app import Application
    from ..http.server import HttpServer

    engines = EngineProcess(SharedMemory(requests, size), SharedMemory(answers, size))
    settings = await engines.connect(end)
    logs.configure(settings["log_level"])
    shutdown = Shutdown()
    metrics = RemoteMetrics(engines)
    app = Application(
        engines.models,  # type: ignore[arg-type]
        metrics,  # type: ignore[arg-type]
        token=settings["token"],
        max_body=settings["max_body"],
        timeout=settings["timeout"],
        body_timeout=settings["body_timeout"],
        webhook_secret=settings["webhook_secret"],
        shutdown=shutdown,
        access_log=settings["access_log"],
        exit_on_error=settings["exit_on_error"],
    )
    server = HttpServer(app, Limits(**settings["limits"]), settings["timeout"], shutdown, metrics)  # type: ignore[arg-type]
    connections = Connections(server, passing, engines, app)
    serving = asyncio.ensure_future(connections.serve())

    def drain() -> None:
        shutdown.draining = True
        server.guard.drain()

    async def end_in_order() -> None:
        drain()
        await connections.take_last()
        server.should_exit = True

    engines.on_drain = drain
    ends: list[asyncio.Task[None]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: ends.append(asyncio.ensure_future(end_in_order()))
        )

    async def end_with_parent() -> None:
        await engines.gone.wait()
        server.should_exit = True

    watch = asyncio.ensure_future(end_with_parent())
    try:
        await server.serve([])
    finally:
        watch.cancel()
        serving.cancel()
        app.close()


def main(arguments: Sequence[str]) -> None:
    """Runs until the connection ends or a signal comes."""
    tune_process()
    end, passing, requests, answers, size = map(int, arguments)
    loop = new_loop()
    try:
        loop.run_until_complete(_run(socket.socket(fileno=end), socket.socket(fileno=passing), requests, answers, size))
    finally:
        loop.close()


if __name__ == "__main__":
    with logs.captured("info"):
        warnings.resetwarnings()  # ignored until here
        main(sys.argv[1:])
