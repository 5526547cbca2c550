"""The server process: loads what is to be served, listens over HTTP and gRPC, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import SettingError, TrtError
from . import logs
from .ending import Ending
from .fronts import Fronts
from .limits import RANGES, Limits, check_number, check_secret
from .listening import affordable, bind, new_loop, refuse_new, settle, tune_process
from .models import Model, Options

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
    options: Options | None = None,
    interval: float = 5.0,
    timeout: float = 60.0,
    max_body: int = 256 << 20,
    token: str | None = None,
    webhook_secret: str | None = None,
    http_processes: int = 0,
    drain: float = 5.0,
    limits: Limits | None = None,
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
        log_level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.

    Raises:
        SettingError: A name or setting can't be honoured, a secret is empty, or a package is missing.
        StoreError: The port is taken.
        TrtError: A model could not be loaded in the first place.
    """
    options = options or Options()
    limits = limits or Limits()
    given = {**locals(), **vars(options)}
    for name in RANGES.keys() & given.keys():
        check_number(name, given[name])
    check_secret("The bearer token", token)
    check_secret("The webhook's secret", webhook_secret)
    logs.configure(log_level)
    tune_process()
    # MLflow's own 7 back off for minutes: a registry that is back again would be noticed late.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from .app import Application
        from .connection import HttpServer
        from .metrics import Metrics

        if grpc_port is not None:
            from . import rpc
    except ImportError as error:
        raise SettingError(
            f"Serving needs {error.name}, which is not installed.",
            "the packages of the serve extra",
            'pip install "mlflow-trt[serve]"',
        ) from error
    served: dict[str, Model] = {}
    devices = options.devices if options.backend == "tensorrt" else ()
    metrics = Metrics(served, devices)
    for name, uri in _named(models).items():
        served[name] = Model(name, uri, options, interval=interval, on_batch=partial(metrics.batch, name))
    settings: dict[str, Any] = {
        "token": token,
        "max_body": max_body,
        "timeout": timeout,
        "body_timeout": limits.body_timeout,
        "webhook_secret": webhook_secret,
    }
    ending = Ending()
    listening = bind(host, port)
    http: _Here | Fronts
    limits = _share(limits, max(http_processes, 1))
    if http_processes:
        device = next(iter(devices), None)
        told = {**settings, "limits": dataclasses.asdict(limits), "log_level": log_level}
        http = Fronts(http_processes, listening, served, metrics, told, device)
    else:
        app = Application(served, metrics, ending=ending, **settings)
        http = _Here(HttpServer(app, limits, timeout, ending, metrics.cut), listening)
    grpc = (
        partial(
            rpc.start,
            served,
            host,
            grpc_port,
            token=token,
            max_body=max_body,
            timeout=timeout,
            metrics=metrics,
            ending=ending,
        )
        if grpc_port is not None
        else None
    )
    _logger.info("Listening", extra={"protocol": "http", "host": host, "port": listening.getsockname()[1]})
    loop = new_loop()
    try:
        failure = loop.run_until_complete(_run(http, served, grpc, timeout, ending, drain))
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


class _Here:
    """HTTP in this process, as :class:`~.fronts.Fronts` is HTTP in others."""

    def __init__(self, server: Any, listening: socket.socket) -> None:
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


async def _run(
    http: Any, models: Mapping[str, Model], start_grpc: Any, timeout: float, ending: Ending, drain: float
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
    first = asyncio.create_task(_first_versions(ended, models))
    stops: list[Any] = []
    try:
        if start_grpc is not None:
            stops.append((await start_grpc()).stop)
        await http.start()
        stops.append(http.stop)
        await ended.wait()
        ending.draining = True
        http.drain()
        if not first.done() or first.result() is None:
            _logger.info("Draining", extra={"seconds": drain})
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(at_once.wait(), drain)
    finally:
        _logger.info("Ending")
        await asyncio.gather(*(stop(timeout) for stop in stops))
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in models.values()))
        first.cancel()
        _logger.info("Ended")
    return first.result() if first.done() and not first.cancelled() else None


async def _first_versions(ended: asyncio.Event, models: Mapping[str, Model]) -> TrtError | None:
    """Waits for every model's first version; ends the server if there is none to be had."""
    waiting = dict(models)
    while waiting:
        for name, model in list(waiting.items()):
            state = model.status()["state"]
            if state == "ready":
                del waiting[name]
            elif state == "failed":
                ended.set()
                return model.failure
        await asyncio.sleep(_LOOK)
    settle()
    _logger.info("Ready", extra={"models": list(models)})
    return None


def _named(models: str | Mapping[str, str]) -> dict[str, str]:
    found = {name_of(models): models} if isinstance(models, str) else dict(models)
    if not found or not all(found) or any("/" in name or not name.isprintable() for name in found):
        raise SettingError(
            f"The models' names are {list(found)}.", "at least one, printable and without a slash", "name=URI"
        )
    return found


def name_of(uri: str) -> str:
    """What clients call a model that was given without a name: its registered name, or its folder's.

    >>> name_of("models:/resnet@champion"), name_of("models:/resnet/3"), name_of("/models/bert/")
    ('resnet', 'resnet', 'bert')
    """
    kind, _, rest = uri.partition(":/")
    if kind == "models":
        return rest.strip("/").partition("/")[0].partition("@")[0]
    return uri.rstrip("/").rpartition("/")[2]
