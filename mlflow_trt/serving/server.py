"""The server process: loads what is to be served, listens over HTTP and gRPC, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from .. import model_uri
from ..errors import SettingError, TrtError
from . import logs
from .config import LoadOptions, ServerConfig
from .http.listening import affordable, bind, new_loop, refuse_new, settle, tune_process
from .limits import Limits
from .shutdown import Shutdown
from .versions.served import Model
from .workers.pool import WorkerPool

_logger = logging.getLogger(__name__)

_LOOK = 0.05
"""Seconds between looks at whether the first versions are loaded."""
_SETTLE = 0.1
"""Seconds that the last connections have to be accepted, once the system takes no more."""


def serve(
    models: str | Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    options: LoadOptions | None = None,
    interval: float = 5.0,
    timeout: float = 60.0,
    max_body: int = 256 << 20,
    token: str | None = None,
    webhook_secret: str | None = None,
    http_processes: int = 0,
    drain: float = 5.0,
    limits: Limits | None = None,
    exit_on_error: bool = True,
    access_log: bool = True,
    log_level: str = "info",
) -> None:
    """Serves models until SIGTERM or Ctrl-C; then running requests are answered, and everything is given back.

    Listens at once and is ready when every model is loaded, compared with its golden outputs, and warm.

    Args:
        models: A model URI, or several by the name that clients call them. ``models:/name@alias`` is watched: a version
            that gets the alias is loaded, checked and warmed in the background and takes over between two requests.
        host: The address to listen on.
        port: Of HTTP: the Open Inference Protocol v2, MLflow's ``/invocations``, ``/metrics``. 0: any that is free; the
            log says which.
        grpc_port: Of the same protocol over gRPC, likewise; None: no gRPC.
        options: How versions are loaded: backend, devices, batching, queue.
        interval: Seconds between two looks at an alias.
        timeout: Seconds that a request may take, and that running requests get when the server ends.
        max_body: Bytes that a request's body may have.
        token: A bearer token that requests must have.
        webhook_secret: What MLflow signs its webhook deliveries with. With it ``POST /v2/webhook`` has the aliases
            looked at at once.
        http_processes: How many processes of their own speak HTTP. 0: this one does, which answers a single client
            soonest; several read the requests of many clients at once.
        drain: Seconds between SIGTERM and the end in which the server says that it is not ready, and still answers
            everything: who sends it requests needs a while to learn of it. Ctrl-C, or a second signal, ends it at once.
        limits: What HTTP connections may take.
        exit_on_error: Whether a model that can't be loaded at the start ends the server. If not, the others are served,
            ``/v2/models/NAME/ready`` tells which those are, and what failed is tried again as a moved alias is.
        access_log: Whether requests that were answered well leave a line in the log; refused ones always do.
        log_level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.

    Raises:
        SettingError: A name or setting can't be honoured, a secret is empty, or a package is missing.
        StoreError: The port is taken.
        TrtError: A model could not be loaded in the first place.
    """
    with failures_logged(log_level):
        config = ServerConfig(
            host=host,
            port=port,
            grpc_port=grpc_port,
            options=options or LoadOptions(),
            interval=interval,
            timeout=timeout,
            max_body=max_body,
            token=token,
            webhook_secret=webhook_secret,
            http_processes=http_processes,
            drain=drain,
            limits=limits or Limits(),
            exit_on_error=exit_on_error,
            access_log=access_log,
            log_level=log_level,
        )
        run(models, config)


@contextlib.contextmanager
def failures_logged(log_level: str) -> Iterator[None]:
    """Captures the log, and leaves a last line in it that says why the block failed, if it does."""
    with logs.captured(log_level):
        try:
            yield
        except TrtError as error:
            _logger.critical("%s", error.message, extra={"event": "failed", "error_type": type(error).__name__})
            raise
        except Exception:
            _logger.critical("The server failed", exc_info=True, extra={"event": "failed"})
            raise


def run(models: str | Mapping[str, str], config: ServerConfig) -> None:
    """Does :func:`serve`'s work; the log is the caller's to capture.

    Args:
        models: A model URI, or several by the name that clients call them.
        config: How they are served.
    """
    uris = _named(models)
    tune_process()
    # MLflow's own 7 back off for minutes: a registry that is back again would be noticed late.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from .http.app import Application
        from .http.server import HttpServer
        from .metrics import Metrics

        if config.grpc_port is not None:
            from .grpc.server import start as start_grpc
    except ImportError as error:
        raise SettingError(
            f"Serving needs {error.name}, which is not installed.",
            "the packages of the serve extra",
            'pip install "mlflow-trt[serve]"',
        ) from error
    served: dict[str, Model] = {}
    devices = config.options.devices if config.options.backend == "tensorrt" else ()
    metrics = Metrics(served, devices)
    for name, uri in uris.items():
        on_batch = partial(metrics.batch, name)
        served[name] = Model(name, uri, config.options, interval=config.interval, on_batch=on_batch)
    shutdown = Shutdown()
    listening = bind(config.host, config.port)
    http: _InProcessHttp | WorkerPool
    each = dataclasses.replace(config, limits=_share(config.limits, max(config.http_processes, 1)))
    if config.http_processes:
        http = WorkerPool(config.http_processes, listening, served, metrics, each, next(iter(devices), None))
    else:
        app = Application(served, metrics, each, shutdown)
        metrics.in_flight["http"] = lambda: app.running
        http = _InProcessHttp(app, HttpServer(app, each, shutdown, metrics), listening)
    grpc = None
    if config.grpc_port is not None:
        grpc = partial(start_grpc, served, config, metrics=metrics, shutdown=shutdown)
    _logger.info("Listening", extra={"protocol": "http", "host": config.host, "port": listening.getsockname()[1]})
    loop = new_loop()
    try:
        failure = loop.run_until_complete(_run(http, served, grpc, config, shutdown))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    if failure is not None:
        raise failure


def _share(limits: Limits, processes: int) -> Limits:
    """What of the limits each process has."""
    return dataclasses.replace(
        limits,
        max_connections=affordable(-(-limits.max_connections // processes)),
        max_unsent=max(limits.max_unsent // processes, 1 << 10),
    )


class _InProcessHttp:
    """HTTP in this process, as :class:`~.workers.pool.WorkerPool` is HTTP in others."""

    def __init__(self, app: Any, server: Any, listening: socket.socket) -> None:
        self.app = app
        self._server = server
        self._listening = listening
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._listening]))

    def drain(self) -> None:
        self._server.guard.drain()

    async def stop(self, seconds: float) -> None:
        refuse_new(self._listening)
        await asyncio.sleep(_SETTLE)
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self.app.close()


async def _run(
    http: Any,
    models: Mapping[str, Model],
    start_grpc: Any,
    config: ServerConfig,
    shutdown: Shutdown,
) -> TrtError | None:
    """Runs until a signal, or until a model fails that nothing serves in place of."""
    ended, at_once = asyncio.Event(), asyncio.Event()

    def end(number: int) -> None:
        if ended.is_set() or number == signal.SIGINT:
            at_once.set()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    for model in models.values():
        model.start()
    first = asyncio.create_task(_first_versions(ended, models, config.exit_on_error))
    stops: list[Any] = []
    try:
        if start_grpc is not None:
            stops.append((await start_grpc()).stop)
        await http.start()
        stops.append(http.stop)
        await ended.wait()
        shutdown.draining = True
        http.drain()
        if not first.done() or first.result() is None:
            _logger.info("Draining", extra={"seconds": config.drain})
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(at_once.wait(), config.drain)
    finally:
        _logger.info("Ending")
        await asyncio.gather(*(stop(config.timeout) for stop in stops))
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in models.values()))
        first.cancel()
        _logger.info("Ended")
    return first.result() if first.done() and not first.cancelled() else None


async def _first_versions(ended: asyncio.Event, models: Mapping[str, Model], exit_on_error: bool) -> TrtError | None:
    """Waits for every model's first version; ends the server if there is none to be had, unless it goes on without."""
    failed: list[str] = []
    waiting = dict(models)
    while waiting:
        for name, model in list(waiting.items()):
            state = model.status()["state"]
            if state == "ready":
                del waiting[name]
            elif state == "failed" and exit_on_error:
                ended.set()
                return model.failure
            elif state == "failed" and name not in failed:
                failed.append(name)
        if set(waiting) <= set(failed) and len(waiting) < len(models):
            break  # what failed is tried again, and said to be served once it is
        await asyncio.sleep(_LOOK)
    settle()
    _logger.info("Ready", extra={"models": [name for name in models if name not in waiting], "failed": list(waiting)})
    return None


def _named(models: str | Mapping[str, str]) -> dict[str, str]:
    uris = {name_of(models): models} if isinstance(models, str) else dict(models)
    if not uris or not all(uris) or any("/" in name or not name.isprintable() for name in uris):
        raise SettingError(
            f"The models' names are {list(uris)}.", "at least one, printable and without a slash", "name=URI"
        )
    return uris


def name_of(uri: str) -> str:
    """What clients call a model that was given without a name: its registered name, or its folder's.

    >>> name_of("models:/resnet@champion"), name_of("models:/resnet/3"), name_of("/models/bert/")
    ('resnet', 'resnet', 'bert')
    """
    read = model_uri.parse(uri)
    return (read and (read.name or read.model_id)) or uri.rstrip("/").rpartition("/")[2]
