"""The command that serves: ``mlflow-trt serve``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

TOKEN = "MLFLOW_TRT_TOKEN"
WEBHOOK_SECRET = "MLFLOW_TRT_WEBHOOK_SECRET"


@click.command(short_help="Serve models over HTTP and gRPC.")
@click.argument("model_uri", metavar="[MODEL]", required=False)
@click.option("--model", "named", multiple=True, metavar="NAME=MODEL", help="A model and its name; repeatable.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="Of HTTP.")
@click.option("--grpc-port", type=int, help="Of gRPC; without it there is none.")
@click.option("--backend", type=click.Choice(["tensorrt", "reference"]), default="tensorrt", show_default=True)
@click.option("--device", "devices", default="0", show_default=True, help="Indices of the GPUs: 0,1")
@click.option("--max-contexts", default=2, show_default=True, help="Calls that run at once on each GPU.")
@click.option("--memory-limit", type=int, help="Bytes of GPU memory for contexts, per GPU and version.")
@click.option("--batching/--no-batching", default=True, show_default=True, help="Join concurrent requests.")
@click.option("--delay", default=0.0, show_default=True, help="Milliseconds that a request may wait for others.")
@click.option("--max-queue", default=256, show_default=True, help="Requests that may wait; further ones get 503.")
@click.option("--http-processes", default=0, show_default=True, help="Processes that speak HTTP; 0: the server's own.")
@click.option("--interval", default=5.0, show_default=True, help="Seconds between two looks at an alias.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that a request may take.")
@click.option("--max-body", default=256, show_default=True, help="MiB that a request's body may have.")
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
    help="A line in the log for each request; refused ones have theirs in any case.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
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
    max_body: int,
    token_file: Path | None,
    exit_on_error: bool,
    offline_start: bool,
    access_log: bool,
    log_level: str,
) -> None:
    """Serve MODEL, or several by name, until SIGTERM: the Open Inference Protocol v2, and MLflow's /invocations.

    models:/NAME@ALIAS is watched: the version that gets the alias takes over between two requests. MLflow's webhooks
    may ask for that at once, at POST /v2/webhook, if MLFLOW_TRT_WEBHOOK_SECRET holds their secret.
    """
    from .serving import server
    from .serving.models import Options

    models = dict(_pair(text) for text in named)
    if len(models) < len(named):
        raise click.UsageError("Two models have the same name.")
    if model_uri is not None:
        models = {server.name_of(model_uri): model_uri, **models}
    if not models:
        raise click.UsageError("Give a model, or --model NAME=MODEL.")
    try:
        indices = tuple(int(index) for index in devices.split(","))
    except ValueError:
        raise click.UsageError(f"--device is {devices!r}; give indices such as 0 or 0,1.") from None
    try:
        token = token_file.read_text().strip() if token_file else os.environ.get(TOKEN)
    except OSError as error:
        raise click.UsageError(f"{token_file} can't be read: {error.strerror}.") from error
    _until_it_ends(
        server.serve,
        models,
        host=host,
        port=port,
        grpc_port=grpc_port,
        options=Options(
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
        token=token or None,
        webhook_secret=os.environ.get(WEBHOOK_SECRET) or None,
        exit_on_error=exit_on_error,
        access_log=access_log,
        log_level=log_level,
    )


def _until_it_ends(serve: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Runs the server; why it failed is in its log, whose every line is JSON."""
    try:
        serve(*args, **kwargs)
    except Exception:
        sys.exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise click.UsageError(f"--model is {text!r}; write NAME=MODEL.")
    return name, uri
