"""ResNet-50 behind ``mlflow-trt serve`` on a GPU: latency, joined requests, and an alias that moves under load."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mlflow_trt

from .context import Context, arrays
from .predicting import SETTLE_S
from .record import Figure, Measurement
from .served import WARM_UP_SECONDS, Connection, Cpu, Load, Server, answer_of, infer_request, load, serving
from .timing import interleave, quantile, ratio

FLOAT32 = "HTTP p50, batch 1, float32 input"
UINT8 = "HTTP p50, batch 1, uint8 input"
GAIN = "64 clients: images per second, batching ÷ no batching"
P99 = "64 clients: p99"
FAILED = "requests that failed"
MIXED = "answers that are not those of the version they name"
MOVES = "moves of the alias"
MEMORY = "GPU memory after the last move ÷ after the first"

CLIENTS = 64
CURVE = (1, 2, 4, 8, 16, 32)
"""Clients before these."""
HTTP_WORKERS = 12
"""Processes that speak HTTP."""
_MANY = ("--http-processes", str(HTTP_WORKERS))
ALONE, JOINED = "no batching", "batching"
WAYS = {ALONE: ("--no-batching", *_MANY), JOINED: _MANY, f"{JOINED}, HTTP in the engines' process": ()}
"""The server's options."""


def latency(context: Context) -> Measurement:
    """One client, batch 1: through HTTP, and the same engine called in this process."""
    context.need_gpu()
    measurement = Measurement(notes=["One client on one connection, binary tensors, in turn with the engine itself."])
    for name, goal in (("resnet50", FLOAT32), ("resnet50_uint8", UINT8)):
        inputs = arrays(name, 1)
        request = infer_request("m", inputs, "logits")
        with serving(context.model(name), "m", context.work) as server:
            connection = Connection(server.port)
            with mlflow_trt.load_model(context.model(name), max_contexts=1) as engine:
                wanted = engine.predict(inputs)["logits"]
                _, found = answer_of(*connection.ask(request)[1:])
                assert np.linalg.norm(found - wanted) <= 2e-2 * np.linalg.norm(wanted)
                time.sleep(SETTLE_S)
                times = interleave(
                    {
                        f"{goal.removeprefix('HTTP p50, ')}: over HTTP": _asking(connection, request),
                        f"{goal.removeprefix('HTTP p50, ')}: the engine in this process": _predicting(engine, inputs),
                    },
                    rounds=context.several(20, 3),
                    calls=context.several(50, 10),
                    deadline=context.deadline(0.5 if goal == FLOAT32 else 1.0),
                )
        over_http = next(iter(times))
        measurement.values[goal] = quantile([s for samples in times[over_http] for s in samples], 0.5) * 1e3
        for way, rounds in times.items():
            measurement.add(way, rounds)
    return measurement


def concurrent(context: Context) -> Measurement:
    """Many clients of batch 1: with and without joining, in turn, and the curve of throughput against latency."""
    context.need_gpu()
    rounds, seconds = context.several(5, 1), context.several(2, 1)
    measurement = Measurement(
        notes=[
            f"Rounds of {seconds} s, the ways in turn; clients in 4 processes, float32 images, binary tensors; HTTP in "
            f"{HTTP_WORKERS} processes."
        ]
    )
    request = infer_request("m", arrays("resnet50", 1), "logits")
    with contextlib.ExitStack() as stack:
        servers = {
            way: stack.enter_context(serving(context.model("resnet50"), "m", context.work, *options))
            for way, options in WAYS.items()
        }
        for clients in CURVE:
            found = load(servers[JOINED].port, request, clients, 1)
            _add(measurement, f"{clients} client{'s' * (clients > 1)}, {JOINED}", [found])
        for server in servers.values():
            load(server.port, request, CLIENTS, 1)
        before = {way: (server.metrics(), server.cpu_seconds()) for way, server in servers.items()}
        loads: dict[str, list[Load]] = {way: [] for way in servers}
        for count in range(rounds):
            if count and time.monotonic() > context.deadline(0.9):
                measurement.notes.append(f"{count} rounds of {rounds}, for want of time.")
                break
            for way, server in servers.items():
                loads[way].append(load(server.port, request, CLIENTS, seconds))
        for way, server in servers.items():
            assert {status for found in loads[way] for status in found.statuses} == {"200"}
            _add(measurement, f"{CLIENTS} clients, {way}", loads[way])
            asked = len(loads[way]) * (seconds + WARM_UP_SECONDS)
            measurement.notes.append(f"{CLIENTS} clients, {way}: {_busy(server, *before[way], asked)}.")
    rates = {way: [[found.rate] for found in several] for way, several in loads.items()}
    measurement.values[GAIN] = ratio(rates[JOINED], rates[ALONE])
    measurement.values[P99] = quantile([s for found in loads[JOINED] for s in found.latencies], 0.99) * 1e3
    by_round = ", ".join(f"{quantile(found.latencies, 0.99) * 1e3:.1f}" for found in loads[JOINED])
    measurement.notes.append(f"{CLIENTS} clients, {JOINED}: p99 of each round {by_round} ms.")
    return measurement


def moves(context: Context) -> Measurement:
    """An alias that goes back and forth between two versions, under the load of 64 clients."""
    context.need_gpu()
    inputs = arrays("resnet50", 1)
    folders = [context.model("resnet50"), context.model("resnet50_other")]
    options = ("--max-contexts", "1", *_MANY)
    measurement = Measurement(notes=["One execution context per GPU and batch size, so that a version loads quickly."])
    registry = _Registry(context.work / "registry", folders)
    expected = {}
    for version, folder in zip(registry.versions, folders, strict=True):
        with mlflow_trt.load_model(folder, max_contexts=1) as engine:
            expected[version] = engine.predict(inputs)["logits"].ravel()
    move_under_load(context, measurement, registry, expected, infer_request("m", inputs, "logits"), options)
    return measurement


class _Registry:
    """A registered model of two versions in a database of its own."""

    def __init__(self, folder: Path, models: list[Path]) -> None:
        import mlflow

        folder.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        self._client = mlflow.MlflowClient()
        self._client.create_registered_model("resnet")
        self.versions = [str(self._client.create_model_version("resnet", m.as_uri()).version) for m in models]
        self.point(self.versions[0])

    def point(self, version: str) -> None:
        """Moves the alias."""
        self._client.set_registered_model_alias("resnet", "champion", version)


def move_under_load(
    context: Context,
    measurement: Measurement,
    registry: _Registry,
    expected: dict[str, np.ndarray],
    request: bytes,
    options: Sequence[str],
) -> None:
    """Moves the alias 200 times, or as often as there is time, while 64 clients ask."""
    wanted = context.several(200, 4)
    memory: list[float] = []
    waits: list[float] = []
    with serving("models:/resnet@champion", "m", context.work, "--interval", "0.05", *options) as server:
        seconds = context.deadline() - time.monotonic() - 10
        stop = time.monotonic() + seconds
        found: list[Load] = []
        enough = threading.Event()
        ask = partial(load, server.port, request, CLIENTS, seconds, expected, enough=enough)
        clients = threading.Thread(target=lambda: found.append(ask()))
        clients.start()
        time.sleep(3)
        while len(waits) < wanted and time.monotonic() < stop - 3:
            target = registry.versions[(len(waits) + 1) % 2]
            begin = time.monotonic()
            registry.point(target)
            if not _until(partial(_serves, server, target), stop - 1):
                break
            waits.append(time.monotonic() - begin)
            _until(partial(_unloaded, server, len(waits)), time.monotonic() + 5)
            memory.append(_memory(server))
        enough.set()
        clients.join()
    counts = found[0].statuses
    measurement.values[MOVES] = float(len(waits))
    measurement.values[FAILED] = float(sum(n for status, n in counts.items() if status not in ("200", "mixture")))
    measurement.values[MIXED] = float(counts["mixture"])
    measurement.values[MEMORY] = memory[-1] / memory[0]
    measurement.figures += [
        Figure("requests answered", "", float(counts["200"])),
        Figure("GPU memory in use after the first move", "MB", memory[0] / 1e6),
        Figure("GPU memory in use after the last move", "MB", memory[-1] / 1e6),
    ]
    if len(waits) < wanted:
        measurement.notes.append(f"{len(waits)} moves of {wanted}, for want of time.")
    measurement.add("from the move to the first answer of the version", [waits], "s")
    measurement.add("a request during all that", [found[0].latencies])


def _asking(connection: Connection, request: bytes) -> Callable[[], object]:
    def ask() -> None:
        status, _, _ = connection.ask(request)
        assert status == 200

    return ask


def _predicting(engine: Any, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: engine.predict(inputs)


def _add(measurement: Measurement, what: str, loads: Sequence[Load]) -> None:
    measurement.add(f"{what}: rate", [[found.rate for found in loads]], "images/s")
    measurement.add(f"{what}: latency", [found.latencies for found in loads])


def _busy(server: Server, before: dict[str, float], cpu_before: Cpu, asked: float) -> str:
    """What a server was busy with in the seconds that it was asked: processors, engines, the rows of a batch."""
    after, cpu = server.metrics(), server.cpu_seconds().since(cpu_before)

    def grown(metric: str) -> float:
        key = f'{metric}{{model="m"}}'
        return after.get(key, 0.0) - before.get(key, 0.0)

    batches, computed = max(grown("mlflow_trt_batch_rows_count"), 1.0), grown("mlflow_trt_compute_seconds_sum")
    return (
        f"the engines' process used {cpu.engines / asked:.2f} cores, {cpu.event_loop / asked:.2f} of these its event "
        f"loop, and the HTTP processes {cpu.http_workers / asked:.2f}; {computed / asked:.2f} of 2 contexts ran, with "
        f"{grown('mlflow_trt_batch_rows_sum') / batches:.1f} rows a batch, {computed / batches * 1e3:.2f} ms"
    )


def _serves(server: Server, version: str) -> bool:
    return any(f'version="{version}"' in key for key in server.metrics() if key.startswith("mlflow_trt_model{"))


def _unloaded(server: Server, count: int) -> bool:
    return server.log.read_text(errors="replace").count('"event": "unloaded"') >= count


def _memory(server: Server) -> float:
    return server.metrics().get('mlflow_trt_gpu_memory_used_bytes{device="0"}', math.nan)


def _until(condition: Callable[[], bool], end_at: float) -> bool:
    while time.monotonic() < end_at:
        if condition():
            return True
        time.sleep(0.02)
    return False
