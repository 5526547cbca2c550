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

from ...errors import BusyError
from ...plan.api import Result
from .. import logs
from ..batching.queue import Answer
from ..config import ServerConfig
from ..http.listening import new_loop, settle, tune_process
from ..served_model import ServedVersion
from ..shutdown import Shutdown
from . import messages
from .ipc import IpcConnection
from .shared_memory import SharedMemory

if TYPE_CHECKING:
    from ..http.app import Application
    from ..http.server import HttpServer

_logger = logging.getLogger(__name__)

_LOOK = 0.05
"""Seconds between looks at how many connections there are."""


class RemoteModel:
    """A model of the other process, as requests need it: a :class:`~.served_model.ServedModel`."""

    def __init__(self, name: str, engines: EngineProcess) -> None:
        self.name = name
        self.registered_model: str | None = None
        self._engines = engines
        self._status: dict[str, Any] = {"name": name, "state": "loading"}
        self._current: ServedVersion | None = None
        self._versions: dict[str, ServedVersion] = {}

    @property
    def current(self) -> ServedVersion:
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
        self._engines.send(messages.Refresh(self.name))

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> Future[Answer]:
        """Queues a request in the other process."""
        _ = self.current  # a model that has none is refused here
        return self._engines.submit(self, inputs, deadline)

    def take_status(self, message: messages.ModelStatus) -> None:
        """Learns how things stand."""
        self._status = message.status
        self.registered_model = message.registered_model
        self._current = None if message.current is None else self._versions[message.current]

    def take_version(self, version: ServedVersion) -> None:
        """Learns of a version."""
        self._versions.pop(version.version, None)
        self._versions[version.version] = version
        for old in list(self._versions)[: -messages.KNOWN_VERSIONS]:
            del self._versions[old]

    def version(self, version: str) -> ServedVersion:
        """One that it has learned of."""
        return self._versions[version]


class EngineProcess:
    """The other process."""

    def __init__(self, requests: SharedMemory, answers: SharedMemory) -> None:
        self.models: dict[str, RemoteModel] = {}
        self.gone = asyncio.Event()
        self.on_drain: Callable[[], None] = lambda: None
        self.configured: asyncio.Future[ServerConfig] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._answers = answers
        self._numbers = itertools.count()
        self._pending: dict[int, _PendingRequest] = {}
        self._texts: dict[int, Future[bytes]] = {}
        self._ipc: IpcConnection | None = None

    async def connect(self, end: socket.socket) -> ServerConfig:
        """Opens the connection; returns the server's configuration."""
        self._ipc = await IpcConnection.open(end, self._take, self.gone.set)
        return await self.configured

    def send(self, message: messages.Message, *, later: bool = False) -> None:
        """Sends a message; later: it need not be there soon."""
        assert self._ipc is not None
        (self._ipc.send_later if later else self._ipc.send)(message)

    def metrics(self) -> Future[bytes]:
        """Asks for what Prometheus reads."""
        number = next(self._numbers)
        text: Future[bytes] = Future()
        self._texts[number] = text
        self.send(messages.MetricsQuery(number))
        return text

    def submit(self, model: RemoteModel, inputs: Mapping[str, np.ndarray], deadline: float | None) -> Future[Answer]:
        """Puts a request's tensors where the other process finds them, and tells it."""
        blocks: list[tuple[int, int]] = []
        places: list[messages.TensorPlace] = []
        for name, array in inputs.items():
            offset = self._requests.allocate(array.nbytes)
            if offset is None:
                self._free(blocks)
                raise BusyError("The memory for requests is full.", "room for its tensors", "try again a little later")
            blocks.append((offset, array.nbytes))
            self._requests.array(offset, array.dtype.name, array.shape)[...] = array
            places.append((name, array.dtype.name, array.shape, offset))
        number = next(self._numbers)
        pending = self._pending[number] = _PendingRequest(blocks, model)
        pending.future.add_done_callback(partial(self._settled, number))
        self.send(messages.Infer(number, model.name, places, deadline))
        return pending.future

    def _settled(self, number: int, future: Future[Answer]) -> None:
        if future.cancelled():
            # The other process may be reading the tensors: their memory is free once it says so.
            self.send(messages.Cancel(number))

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.InferenceAnswer():
                pending = self._finish(message.id)
                outputs = {place[0]: self._fetch(place) for place in message.outputs}
                if pending.future.set_running_or_notify_cancel():
                    version = pending.model.version(message.version)
                    figures = (message.rows, message.batch, message.queued, message.computed)
                    pending.future.set_result(Answer(Result(outputs, message.backend), version, *figures))
            case messages.RequestFailed():
                pending = self._finish(message.id)
                if pending.future.set_running_or_notify_cancel():
                    pending.future.set_exception(message.error.error())
            case messages.MetricsText():
                self._texts.pop(message.id).set_result(self._fetch(message.text).tobytes())
            case messages.ModelStatus():
                self._model(message.model).take_status(message)
            case messages.VersionLoaded():
                self._model(message.model).take_version(message.version)
            case messages.Configure():
                self.configured.set_result(message.config)
            case messages.Drain():
                self.on_drain()
            case _:
                raise TypeError(f"The engines' process sent {type(message).__name__}")

    def _model(self, name: str) -> RemoteModel:
        return self.models.setdefault(name, RemoteModel(name, self))

    def _finish(self, number: int) -> _PendingRequest:
        pending = self._pending.pop(number)
        self._free(pending.blocks)
        return pending

    def _fetch(self, place: messages.TensorPlace) -> np.ndarray:
        """A copy: the block is given back at once, and the response may wait for a slow client."""
        _, dtype, shape, offset = place
        array = self._answers.array(offset, dtype, shape).copy()
        self.send(messages.FreeBlock(offset, array.nbytes), later=True)
        return array

    def _free(self, blocks: Sequence[tuple[int, int]]) -> None:
        for offset, nbytes in blocks:
            self._requests.free(offset, nbytes)


class _PendingRequest:
    """A request that the other process has not answered yet."""

    def __init__(self, blocks: Sequence[tuple[int, int]], model: RemoteModel) -> None:
        self.blocks = blocks
        self.model = model
        self.future: Future[Answer] = Future()


class RemoteMetrics:
    """Has the other process count, and asks it for what Prometheus reads."""

    def __init__(self, engines: EngineProcess) -> None:
        self._engines = engines

    def request(self, model: str, protocol: str, status: int | str, seconds: float | None) -> None:
        """Counts an inference request that ended."""
        self._engines.send(messages.InferenceCount(model, protocol, status, seconds), later=True)

    def cut(self, limit: str) -> None:
        """Counts a connection that was refused or cut off."""
        self._engines.send(messages.CutCount(limit), later=True)

    def other(self, route: str, protocol: str, status: int | str) -> None:
        """Counts any other one."""
        self._engines.send(messages.OtherCount(route, protocol, status), later=True)

    def text(self) -> bytes:
        """Returns what Prometheus reads; waits, so not from the event loop."""
        return self._engines.metrics().result(10)


class Connections:
    """Connections that the other process has accepted, served here.

    Args:
        server: uvicorn's.
        passing: Where they come from.
        engines: Learns how many of them were closed.
        app: What answers on them.
    """

    def __init__(self, server: HttpServer, passing: socket.socket, engines: EngineProcess, app: Application) -> None:
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
        told: messages.WorkerLoad | None = None
        try:
            while True:
                load = messages.WorkerLoad(self._taken - len(self._tasks) - self._server.open, self._app.running)
                if load != told:
                    told = load
                    self._engines.send(load)
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
    config = await engines.connect(end)
    logs.configure(config.log_level)
    shutdown = Shutdown()
    metrics = RemoteMetrics(engines)
    app = Application(engines.models, metrics, config, shutdown)
    server = HttpServer(app, config, shutdown, metrics)
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
