"""The command that serves: ``mlflow-trt serve``."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ..serving.config import LoadOptions, ServerConfig
from ..serving.limits import RANGES, Limits

TOKEN = "MLFLOW_TRT_TOKEN"
WEBHOOK_SECRET = "MLFLOW_TRT_WEBHOOK_SECRET"

_MEGA = 1 << 20
_DEFAULTS = ServerConfig()
_LIMITS = _DEFAULTS.limits


class _Number(click.FloatRange):
    """A number in the range that the server gives it; ``nan`` is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a number to count with.", param, ctx)
        return number


def _number(name: str, unit: float = 1, *, whole: bool = False) -> click.ParamType[Any]:
    """The type of an option.

    Args:
        name: The setting that it is for.
        unit: What one of it is, in the setting's own unit.
        whole: Whether it is an integer.
    """
    low, high = RANGES[name]
    most = None if high == math.inf else high / unit
    if whole:
        return click.IntRange(math.ceil(low / unit), None if most is None else int(most))
    return _Number(low / unit, most)


def _option(flag: str, name: str, default: float | None, text: str, unit: float = 1) -> Callable[..., Any]:
    """An option that is a number, with its range and default in the help."""
    whole = isinstance(default, int) or default is None
    return click.option(flag, type=_number(name, unit, whole=whole), default=default, show_default=True, help=text)


@click.command(short_help="Serve models over HTTP and gRPC.")
@click.argument("model_uri", metavar="[MODEL]", required=False)
@click.option("--model", "named", multiple=True, metavar="NAME=MODEL", help="A model and its name; repeatable.")
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="The address to listen on.")
@_option("--port", "port", _DEFAULTS.port, "Of HTTP; 0: any that is free, which the log names.")
@_option("--grpc-port", "grpc_port", None, "Of gRPC; 0: any that is free; without it there is none.")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "reference"]),
    default=_DEFAULTS.options.backend,
    show_default=True,
    help="What runs the models; reference: their programs, on the CPU, by PyTorch or ONNX Runtime.",
)
@click.option("--device", "devices", default="0", show_default=True, help="Indices of the GPUs: 0,1")
@_option("--max-contexts", "max_contexts", _DEFAULTS.options.max_contexts, "Calls that run at once on each GPU.")
@_option("--memory-limit", "memory_limit", None, "Bytes of GPU memory for contexts, per GPU and version.")
@click.option("--batching/--no-batching", default=True, show_default=True, help="Join concurrent requests.")
@_option("--delay", "delay", 0.0, "Milliseconds that a request may wait for others.", 1e-3)
@_option("--max-queue", "max_queue", _DEFAULTS.options.max_queue, "Requests that may wait; further ones get 503.")
@_option(
    "--http-processes", "http_processes", _DEFAULTS.http_processes, "Processes that speak HTTP; 0: the server's own."
)
@_option("--interval", "interval", _DEFAULTS.interval, "Seconds between two looks at an alias.")
@_option("--timeout", "timeout", _DEFAULTS.timeout, "Seconds that a request may take, once its body is there.")
@_option("--drain", "drain", _DEFAULTS.drain, "Seconds after SIGTERM in which requests are taken; not after Ctrl-C.")
@_option("--max-body", "max_body", _DEFAULTS.max_body >> 20, "MiB that a request's body may have.", _MEGA)
@_option("--max-header", "max_header", _LIMITS.max_header >> 10, "KiB that a request's headers may have.", 1 << 10)
@_option("--max-connections", "max_connections", _LIMITS.max_connections, "HTTP connections that may be open.")
@_option("--max-unsent", "max_unsent", _LIMITS.max_unsent >> 20, "MiB of answers that clients may leave unread.", _MEGA)
@_option("--header-timeout", "header_timeout", _LIMITS.header_timeout, "Seconds that headers may take to arrive.")
@_option("--body-timeout", "body_timeout", _LIMITS.body_timeout, "Seconds for a body, or for 1 MiB more of it.")
@_option("--idle-timeout", "idle_timeout", _LIMITS.idle_timeout, "Seconds that a connection may do nothing.")
@_option("--write-timeout", "write_timeout", _LIMITS.write_timeout, "Seconds to take an answer, or 1 MiB more of it.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Holds the bearer token that requests must have; or set {TOKEN}.",
)
@click.option(
    "--exit-on-error",
    type=bool,
    default=True,
    show_default=True,
    help="Whether a model that can't be loaded ends the server; false: the others are served, and it is tried again.",
)
@click.option(
    "--offline-start/--no-offline-start",
    default=False,
    show_default=True,
    help="Start with the version that was served last, from the cache, if the registry can't be reached.",
)
@click.option(
    "--access-log/--no-access-log",
    default=True,
    show_default=True,
    help="A line in the log for each request. Without it refused ones have theirs, at most 20 in a second.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least that is logged, as JSON lines on standard error.",
)
def serve(
    model_uri: str | None,
    named: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    backend: str,
    devices: str,
    max_contexts: int,
    memory_limit: int | None,
    batching: bool,
    delay: float,
    max_queue: int,
    http_processes: int,
    interval: float,
    timeout: float,
    drain: float,
    max_body: int,
    max_header: int,
    max_unsent: int,
    token_file: Path | None,
    exit_on_error: bool,
    offline_start: bool,
    access_log: bool,
    log_level: str,
    **limits: Any,
) -> None:
    """Serve MODEL, or several by name, until SIGTERM: the Open Inference Protocol v2, and MLflow's /invocations.

    MODEL is a local folder or any URI that MLflow takes: models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH,
    s3://… It is called by its registered name, or its folder's; --model gives another name. The first one also answers
    /invocations.

    models:/NAME@ALIAS is watched: the version that gets the alias takes over between two requests. MLflow's webhooks
    may ask for that at once, at POST /v2/webhook, if MLFLOW_TRT_WEBHOOK_SECRET holds their secret.

    \b
    Environment variables:
      MLFLOW_TRACKING_URI        where MLflow keeps its models
      MLFLOW_REGISTRY_URI        where their registry is, if it is elsewhere
      MLFLOW_TRT_TOKEN           the bearer token that requests must have, if no --token-file is given
      MLFLOW_TRT_WEBHOOK_SECRET  what MLflow signs its webhook deliveries with
      MLFLOW_TRT_CACHE           where what was downloaded and compiled is kept
    """
    from ..serving import logs

    with logs.captured(log_level):  # imports may warn
        models = _models(model_uri, named)
        indices, token = _indices(devices), _token(token_file)
        from ..serving import server

        with _exit_status(), server.failures_logged(log_level):
            config = ServerConfig(
                host=host,
                port=port,
                grpc_port=grpc_port,
                options=LoadOptions(
                    backend=backend,
                    devices=indices,
                    max_contexts=max_contexts,
                    memory_limit=memory_limit,
                    batching=batching,
                    delay=delay / 1000,
                    max_queue=max_queue,
                    offline_start=offline_start,
                ),
                interval=interval,
                timeout=timeout,
                max_body=max_body << 20,
                http_processes=http_processes,
                token=token,
                webhook_secret=os.environ.get(WEBHOOK_SECRET),
                drain=drain,
                limits=Limits(max_header=max_header << 10, max_unsent=max_unsent << 20, **limits),
                exit_on_error=exit_on_error,
                access_log=access_log,
                log_level=log_level,
            )
            server.run(models, config)


@contextlib.contextmanager
def _exit_status() -> Iterator[None]:
    """Makes 1 of a failure, whose reason is in the log, whose every line is JSON."""
    try:
        yield
    except Exception:
        sys.exit(1)


def _models(model_uri: str | None, named: tuple[str, ...]) -> dict[str, str]:
    """The models by name, in the order in which they were given."""
    from ..serving.server import name_of

    pairs = [_pair(text) for text in named]
    if model_uri is not None:
        pairs.insert(0, (name_of(model_uri), model_uri))
    if not pairs:
        raise click.UsageError("Give a model, or --model NAME=MODEL.")
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.UsageError(f"Two models have the name {twice!r}; give one of them another, as --model NAME=MODEL.")
    return dict(pairs)


def _indices(devices: str) -> tuple[int, ...]:
    try:
        indices = tuple(int(index) for index in devices.split(","))
    except ValueError:
        indices = ()
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise click.UsageError(f"--device is {devices!r}; give indices such as 0 or 0,1.")
    return indices


def _token(path: Path | None) -> str | None:
    if path is None:
        given = os.environ.get(TOKEN)
        return None if given is None else given.strip()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def _pair(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise click.UsageError(f"--model is {text!r}; write NAME=MODEL.")
    return name, uri
