"""The processes that speak HTTP, as the process that holds the engines sees them: started, answered, and replaced.

Connections are accepted here and handed to the worker that has the fewest. The kernel would spread them by chance, and
the clients of the worker that got most of them would wait longest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from operator import attrgetter

import numpy as np

from ...errors import BusyError, TrtError
from .. import logs
from ..batching.queue import Answer
from ..config import ServerConfig
from ..error_parts import ErrorParts
from ..http.listening import refuse_new
from ..metrics import Metrics
from ..served_model import ServedModel, ServedVersion
from . import messages, shared_memory
from .ipc import IpcConnection
from .shared_memory import SharedMemory

_logger = logging.getLogger(__name__)

SHARED_MEMORY = 4 << 30
"""Bytes of shared memory for requests, and again for answers; only what is used takes memory."""
_STATE = 0.1
"""Seconds between two looks at what the workers should know."""
_QUICKLY = 5.0
"""Seconds: an HTTP worker that ends sooner is not started again at once."""
_PAUSE = 0.02
"""Seconds that a connection waits where no worker can take it, before the next try."""
_SETTLE = 0.1
"""Seconds that the last connections have to be accepted, once the system takes no more."""


class WorkerPool:
    """All of them.

    Args:
        count: How many.
        listening: Where connections come from.
        models: What is served.
        metrics: Where their requests are counted.
        config: How each of them serves.
        device: A GPU that engines use; None: none does.
    """

    def __init__(
        self,
        count: int,
        listening: socket.socket,
        models: Mapping[str, ServedModel],
        metrics: Metrics,
        config: ServerConfig,
        device: int | None = None,
    ) -> None:
        self._listening = listening
        self._models = models
        self._metrics = metrics
        self._config = config
        self._device = device
        self._count = count
        self._workers: list[_Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._accepting: asyncio.Task[None]
        self._handing = False
        """Whether a connection waits for an HTTP worker that takes it."""
        self._draining = False
        self._ending = False
        metrics.in_flight["http"] = lambda: sum(worker.running for worker in self._workers)

    async def start(self) -> None:
        """Starts them, and keeps their number."""
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(self._count)]
        self._tasks.append(asyncio.create_task(self._tell()))
        self._accepting = asyncio.create_task(self._accept())

    def drain(self) -> None:
        """Has them say that the server is not ready, and that their connections end."""
        self._draining = True
        for worker in self._workers:
            worker.drain()

    async def stop(self, seconds: float) -> None:
        """Has them answer what is under way, and ends them."""
        refuse_new(self._listening)
        await asyncio.sleep(_SETTLE)
        end = time.monotonic() + seconds
        while self._handing and time.monotonic() < end:
            await asyncio.sleep(_PAUSE)
        self._ending = True
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listening.close()
        for worker in self._workers:
            worker.process.terminate()
        for worker in list(self._workers):
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(worker.gone.wait(), seconds + 5)
            worker.process.kill()
            await asyncio.to_thread(worker.process.wait)
        for task in self._tasks:
            task.cancel()

    async def _keep(self) -> None:
        while not self._ending:
            begin = time.monotonic()
            try:
                worker = _Worker(self._models, self._metrics, self._device)
            except OSError as error:  # there are too many processes or descriptors now, or too little memory
                _logger.error("No HTTP worker can be started: %s", error, extra={"event": "http_worker_not_started"})
                await asyncio.sleep(_QUICKLY)
                continue
            self._workers.append(worker)
            await worker.open(self._config)
            if self._draining:
                worker.drain()
            await worker.gone.wait()
            if not self._ending:
                self._workers.remove(worker)
                _logger.error("An HTTP worker ended", extra={"event": "http_worker_ended", "pid": worker.process.pid})
                await asyncio.sleep(max(0.0, _QUICKLY - (time.monotonic() - begin)))

    async def _tell(self) -> None:
        while True:
            for worker in self._workers:
                worker.tell()
            await asyncio.sleep(_STATE)

    async def _accept(self) -> None:
        self._listening.setblocking(False)
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._listening)
            except OSError as error:
                _logger.warning("A connection can't be accepted: %s", error, extra={"event": "accept_failed"})
                await asyncio.sleep(_PAUSE)
                continue
            self._handing = True
            with connection:
                while not any(
                    worker.hand(connection) for worker in sorted(self._workers, key=attrgetter("connections"))
                ):
                    await asyncio.sleep(_PAUSE)
            self._handing = False


class _Worker:
    """One process, its connection, and the memory that is shared with it."""

    def __init__(self, models: Mapping[str, ServedModel], metrics: Metrics, device: int | None) -> None:
        self._models = models
        self._metrics = metrics
        self.gone = asyncio.Event()
        self._told: dict[str, messages.ModelStatus] = {}
        self._known: dict[str, tuple[ServedVersion, ...]] = dict.fromkeys(models, ())
        """The versions of each model that the worker was told of, the last one first."""
        self._introducing = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Future[Answer]] = {}
        descriptors = [shared_memory.create(SHARED_MEMORY), shared_memory.create(SHARED_MEMORY)]
        self._requests, self._answers = (SharedMemory(descriptor, SHARED_MEMORY) for descriptor in descriptors)
        self._device = device
        """That fetches requests by itself; None: none does."""
        self.connections = 0
        """That it was handed and has not reported as closed."""
        self._handed = 0
        self.running = 0
        """Requests under way there, a moment ago."""
        self._serves = False
        self._end, its_end = socket.socketpair()
        self._passing, its_passing = socket.socketpair()
        self._passing.setblocking(False)
        descriptors = [its_end.detach(), its_passing.detach(), *descriptors]
        # Their own session: Ctrl-C in a terminal reaches this process, which then ends them in order.
        command = [sys.executable, *logs.QUIET, "-m", __package__ + ".worker"]
        command += [*map(str, descriptors), str(SHARED_MEMORY)]
        try:
            self.process = subprocess.Popen(
                command, pass_fds=descriptors, start_new_session=True, stderr=logs.descriptor()
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._ipc: IpcConnection | None = None

    async def open(self, config: ServerConfig) -> None:
        """Opens the connection and says how to serve."""
        self._ipc = await IpcConnection.open(self._end, self._take, self._lost)
        self._page_lock(1)  # its first part, before a model warms up
        self.tell()
        self._ipc.send(messages.Configure(config))

    def hand(self, connection: socket.socket) -> bool:
        """Passes a connection on; False: this worker can't take it."""
        if not self._serves:
            return False
        try:
            socket.send_fds(self._passing, [b"c"], [connection.fileno()])
        except OSError:  # it is gone, or too busy even to take connections
            return False
        self._handed += 1
        self.connections += 1
        return True

    def drain(self) -> None:
        """Has it say that the server is not ready, and that its connections end."""
        self._send(messages.Drain())

    def tell(self) -> None:
        """Says how the models stand, where that has changed."""
        if self._ipc is None:
            return
        for name, model in self._models.items():
            status = model.status()
            current: ServedVersion | None
            try:
                current = model.current
            except BusyError:
                current = None
            if current is not None:
                self._introduce(name, current)
            message = messages.ModelStatus(name, model.registered_model, status, current.version if current else None)
            if self._told.get(name) != message:
                self._told[name] = message
                self._ipc.send(message)

    def _introduce(self, model: str, version: ServedVersion) -> None:
        """Describes a version before anything else names it; from any thread."""
        with self._introducing:
            known = self._known[model]
            if version not in known:
                self._send(messages.VersionLoaded(model, version))
                self._known[model] = (version, *known)[: messages.KNOWN_VERSIONS]

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.Infer():
                self._infer(message)
            case messages.Cancel():
                future = self._running.get(message.id)
                if future is not None:
                    future.cancel()
            case messages.FreeBlock():
                self._answers.free(message.offset, message.nbytes)
            case messages.WorkerLoad():
                self._serves = True
                self.connections = self._handed - message.closed
                self.running = message.running
            case messages.InferenceCount():
                self._metrics.request(*message)
            case messages.OtherCount():
                self._metrics.other(*message)
            case messages.CutCount():
                self._metrics.cut(message.limit)
            case messages.Refresh():
                self._models[message.model].refresh()
            case messages.MetricsQuery():
                self._tell_figures(message.id)
            case _:
                raise TypeError(f"A worker sent {type(message).__name__}")

    def _infer(self, message: messages.Infer) -> None:
        number = message.id
        model = self._models[message.model]
        inputs = {}
        for name, dtype, shape, offset in message.inputs:
            inputs[name] = array = self._requests.array(offset, dtype, shape)
            self._page_lock(offset + array.nbytes)
        try:
            future = model.submit(inputs, message.deadline)
        except TrtError as error:
            self._refuse(number, error)
            return
        self._running[number] = future
        future.add_done_callback(partial(self._done, number, message.model))

    def _tell_figures(self, number: int) -> None:
        """Answers what Prometheus reads."""
        try:
            places = self._put({"text": np.frombuffer(self._metrics.text(), np.uint8)})
        except TrtError:  # the memory for answers is full: a moment later it may not be
            if not self.gone.is_set():
                self._loop.call_later(_STATE, self._tell_figures, number)
            return
        self._send(messages.MetricsText(number, *places))

    def _page_lock(self, end: int) -> None:
        if self._device is not None and not self._requests.page_lock(end, self._device):
            self._device = None

    def _done(self, number: int, model: str, future: Future[Answer]) -> None:
        """Called by the thread that ran the batch: copying large answers there keeps the event loop free."""
        self._running.pop(number, None)
        try:
            answer = future.result()
            outputs = self._put(answer.outputs)
        except CancelledError:
            self._refuse(number, TrtError("The request was dropped."))
        except TrtError as error:
            self._refuse(number, error)
        except Exception:  # whatever it was, the client must not wait for ever
            _logger.exception("A request failed")
            self._refuse(number, TrtError("The server failed; its log says more."))
        else:
            if answer.version not in self._known[model]:
                self._loop.call_soon_threadsafe(self.tell)  # first: which version answers now travels with the answer
                self._introduce(model, answer.version)
            figures = (answer.rows, answer.batch, answer.queued, answer.computed)
            version, backend = answer.version.version, answer.outputs.backend
            self._send(messages.InferenceAnswer(number, version, backend, outputs, *figures))

    def _put(self, arrays: Mapping[str, np.ndarray]) -> list[messages.TensorPlace]:
        places: list[messages.TensorPlace] = []
        for name, array in arrays.items():
            offset = self._answers.allocate(array.nbytes)
            if offset is None:
                for (*_, taken), earlier in zip(places, arrays.values()):
                    self._answers.free(taken, earlier.nbytes)
                raise BusyError("The memory for answers is full.", "room for its tensors", "try again a little later")
            self._answers.array(offset, array.dtype.name, array.shape)[...] = array
            places.append((name, array.dtype.name, array.shape, offset))
        return places

    def _refuse(self, number: int, error: TrtError) -> None:
        self._send(messages.RequestFailed(number, ErrorParts.of(error)))

    def _send(self, message: messages.Message) -> None:
        if self._ipc is not None:
            self._ipc.send(message)

    def _lost(self) -> None:
        for future in list(self._running.values()):
            future.cancel()
        self._ipc = None
        self._serves = False
        self._passing.close()
        self.gone.set()
        self._unlocking = asyncio.ensure_future(self._page_unlock())  # kept: the loop holds its tasks weakly

    async def _page_unlock(self) -> None:
        while self._running:  # an engine may be reading requests
            await asyncio.sleep(_STATE)
        self._requests.page_unlock()
