"""The server process: loads what is to be served, listens over HTTP and gRPC, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ..errors import SettingError, StoreError, TrtError
from . import logs
from .models import Model, Options

_logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LOOK = 0.05
"""Seconds between looks at whether the first versions are loaded."""


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
    log_level: str = "info",
) -> None:
    """Serves models until SIGTERM or Ctrl-C; then running requests are answered, and everything is given back.

    Listens at once and is ready when every model is loaded, compared with its golden outputs, and warm.

    Args:
        models: A model URI, or several by the name that clients call them. ``models:/name@alias`` is watched: a version
            that gets the alias is loaded, checked and warmed in the background and takes over between two requests.
        host: The address to listen on.
        port: Of HTTP: the Open Inference Protocol v2, MLflow's ``/invocations``, ``/metrics``.
        grpc_port: Of the same protocol over gRPC; None: no gRPC.
        options: How versions are loaded: backend, devices, batching, queue.
        interval: Seconds between two looks at an alias.
        timeout: Seconds that a request may take, and that running requests get when the server ends.
        max_body: Bytes that a request's body may have.
        token: A bearer token that requests must have.
        webhook_secret: What MLflow signs its webhook deliveries with. With it ``POST /v2/webhook`` has the aliases
            looked at at once.
        log_level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.

    Raises:
        SettingError: A name or setting can't be honoured, or a package is missing.
        StoreError: The port is taken.
        TrtError: A model could not be loaded in the first place.
    """
    logs.configure(log_level)
    _keep_freed_memory()
    try:
        import uvicorn

        from .app import Application
        from .metrics import Metrics
    except ImportError as error:
        raise SettingError(
            f"Serving needs {error.name}, which is not installed.",
            "the packages of the serve extra",
            'pip install "mlflow-trt[serve]"',
        ) from error
    options = options or Options()
    served: dict[str, Model] = {}
    metrics = Metrics(served, options.devices if options.backend == "tensorrt" else ())
    for name, uri in _named(models).items():
        served[name] = Model(name, uri, options, interval=interval, on_batch=partial(metrics.batch, name))
    app = Application(served, metrics, token=token, max_body=max_body, timeout=timeout, webhook_secret=webhook_secret)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="auto",  # httptools, where it is installed
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(int(timeout), 1),
    )
    grpc = partial(_start_grpc, served, host, grpc_port, token, max_body, timeout, metrics) if grpc_port else None
    loop = _new_loop()
    try:
        failure = loop.run_until_complete(_run(uvicorn.Server(config), served, grpc))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    if failure is not None:
        raise failure


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: bodies of megabytes are otherwise mapped and unmapped, page by page, every time."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run(server: Any, models: Mapping[str, Model], start_grpc: Any) -> TrtError | None:
    """Runs until a signal, or until a model fails that nothing serves in place of."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(setattr, server, "should_exit", True))
    # uvicorn's own handling ends the process by the signal once more: a server that was told to end has not failed.
    server.capture_signals = _no_signals
    for model in models.values():
        model.start()
    rpc = await start_grpc() if start_grpc else None
    first = asyncio.create_task(_first_versions(server, models))
    try:
        await server.serve()
    except SystemExit:
        return StoreError(
            f"Nothing listens on {server.config.host}:{server.config.port}: the address can't be had.",
            "a free port and an address of this machine",
            "see the log; choose another --port or --host",
        )
    finally:
        first.cancel()
        if rpc is not None:
            await rpc.stop(server.config.timeout_graceful_shutdown)
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in models.values()))
        _logger.info("Ended")
    return first.result() if first.done() and not first.cancelled() else None


async def _first_versions(server: Any, models: Mapping[str, Model]) -> TrtError | None:
    """Waits for every model's first version; ends the server if there is none to be had."""
    waiting = dict(models)
    while waiting:
        for name, model in list(waiting.items()):
            state = model.status()["state"]
            if state == "ready":
                del waiting[name]
            elif state == "failed":
                server.should_exit = True
                return model.failure
        await asyncio.sleep(_LOOK)
    _logger.info("Ready", extra={"models": list(models)})
    return None


async def _start_grpc(
    models: Mapping[str, Model],
    host: str,
    port: int,
    token: str | None,
    max_body: int,
    timeout: float,
    metrics: Any,
) -> Any:
    from . import rpc

    return await rpc.start(models, host, port, token=token, max_body=max_body, timeout=timeout, metrics=metrics)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


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
