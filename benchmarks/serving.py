"""ResNet-50 behind ``mlflow-trt serve`` on a GPU: latency, joined requests, and an alias that moves under load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mlflow_trt

from .context import Context, arrays
from .predicting import SETTLE_S
from .record import Figure, Measurement
from .served import Connection, Server, answer_of, infer_request, load, serving
from .timing import interleave, quantile

FLOAT32 = "HTTP p50, batch 1, float32 input"
UINT8 = "HTTP p50, batch 1, uint8 input"
GAIN = "64 clients: images per second, batching ÷ no batching"
P99 = "64 clients: p99"
FAILED = "requests that failed"
MIXED = "answers that are not those of the version they name"
MEMORY = "GPU memory after the last move ÷ after the first"

CLIENTS = 64


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
    """Many clients of batch 1: with and without joining, and the curve of throughput against latency."""
    context.need_gpu()
    seconds = context.several(6, 1)
    measurement = Measurement(notes=[f"{seconds} s each; clients in 4 processes, float32 images, binary tensors."])
    request = infer_request("m", arrays("resnet50", 1), "logits")
    rates: dict[str, float] = {}
    for way, options in (("no batching", ("--no-batching",)), ("batching", ())):
        with serving(context.model("resnet50"), "m", context.work, *options) as server:
            if way == "batching":
                for clients in (1, 2, 4, 8, 16, 32):
                    found = load(server.port, request, clients, max(seconds / 3, 1))
                    _add(measurement, f"{clients} client{'s' * (clients > 1)}, batching", found.rate, found.latencies)
            before, cpu, begin = server.metrics(), server.cpu_seconds(), time.monotonic()
            found = load(server.port, request, CLIENTS, seconds)
            wall = time.monotonic() - begin
            after, cpu = server.metrics(), server.cpu_seconds() - cpu
            assert set(found.statuses) == {"200"}, found.statuses
            rates[way] = found.rate
            _add(measurement, f"{CLIENTS} clients, {way}", found.rate, found.latencies)
            measurement.notes.append(f"{CLIENTS} clients, {way}: {_busy(before, after, cpu, wall)}.")
            if way == "batching":
                measurement.values[P99] = quantile(found.latencies, 0.99) * 1e3
    measurement.values[GAIN] = rates["batching"] / rates["no batching"]
    return measurement


def moves(context: Context) -> Measurement:
    """An alias that goes back and forth between two versions, under the load of 64 clients."""
    context.need_gpu()
    import mlflow

    store = context.work / "registry"
    store.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{store}/mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("serving", (store / "artifacts").as_uri()))
    client = mlflow.MlflowClient()
    inputs = arrays("resnet50", 1)
    expected = {}
    for folder in (context.model("resnet50"), context.model("resnet50_other")):
        version = _register(client, "resnet", folder)
        with mlflow_trt.load_model(folder, max_contexts=1) as engine:
            expected[version] = engine.predict(inputs)["logits"].ravel()
    first, second = expected
    client.set_registered_model_alias("resnet", "champion", first)
    wanted_moves = context.several(200, 4)
    seconds = context.deadline() - time.monotonic() - 15
    request = infer_request("m", inputs, "logits")
    memory: list[float] = []
    with serving("models:/resnet@champion", "m", context.work, "--interval", "0.1") as server:
        found: list[Any] = []
        clients = threading.Thread(target=lambda: found.append(load(server.port, request, CLIENTS, seconds, expected)))
        clients.start()
        stop = time.monotonic() + seconds
        done = 0
        while done < wanted_moves and time.monotonic() < stop - 5:
            target = second if done % 2 == 0 else first
            client.set_registered_model_alias("resnet", "champion", target)
            if not _until(lambda target=target: _serves(server, target), stop - 1):
                break
            _until(lambda done=done: _unloaded(server, done + 1), time.monotonic() + 5)
            memory.append(_memory(server))
            done += 1
        clients.join()
    counts = found[0].statuses
    measurement = Measurement(
        values={
            FAILED: float(sum(n for status, n in counts.items() if status not in ("200", "mixture"))),
            MIXED: float(counts["mixture"]),
            MEMORY: memory[-1] / memory[0],
        },
        figures=[
            Figure("moves of the alias", "", float(done)),
            Figure("requests answered", "", float(counts["200"])),
            Figure("GPU memory in use after the first move", "MB", memory[0] / 1e6),
            Figure("GPU memory in use after the last move", "MB", memory[-1] / 1e6),
        ],
    )
    if done < wanted_moves:
        measurement.notes.append(f"{done} moves of {wanted_moves}, for want of time.")
    measurement.add("a request during all that", [found[0].latencies])
    return measurement


def _asking(connection: Connection, request: bytes) -> Callable[[], object]:
    def ask() -> None:
        status, _, _ = connection.ask(request)
        assert status == 200

    return ask


def _predicting(engine: Any, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: engine.predict(inputs)


def _add(measurement: Measurement, what: str, rate: float, latencies: list[float]) -> None:
    measurement.figures.append(Figure(f"{what}: rate", "images/s", rate))
    measurement.add(f"{what}: latency", [latencies])


def _busy(before: dict[str, float], after: dict[str, float], cpu: float, wall: float) -> str:
    """What the server was busy with: its processor time, the share that engines ran, and the rows of a batch."""

    def grown(metric: str) -> float:
        key = f'{metric}{{model="m"}}'
        return after.get(key, 0.0) - before.get(key, 0.0)

    batches, computed = max(grown("mlflow_trt_batch_rows_count"), 1.0), grown("mlflow_trt_compute_seconds_sum")
    return (
        f"the server's process used {cpu / wall:.2f} cores; engines ran {computed:.1f} s of {wall:.1f} s (two may run "
        f"at once), {grown('mlflow_trt_batch_rows_sum') / batches:.1f} rows a batch, {computed / batches * 1e3:.2f} ms"
    )


def _register(client: Any, name: str, folder: Path) -> str:
    """Registers a saved model as the next version, as ``log_model`` would."""
    import mlflow

    from mlflow_trt.foreign import read_plans

    info = mlflow_trt.log_model(read_plans(folder), "resnet", registered_model_name=name)
    mlflow.end_run()
    return str(info.registered_model_version)


def _serves(server: Server, version: str) -> bool:
    return any(f'version="{version}"' in key for key in server.metrics() if key.startswith("mlflow_trt_model{"))


def _unloaded(server: Server, count: int) -> bool:
    return server.log.read_text(errors="replace").count('"event": "unloaded"') >= count


def _memory(server: Server) -> float:
    return server.metrics()['mlflow_trt_gpu_memory_used_bytes{device="0"}']


def _until(condition: Callable[[], bool], end_at: float) -> bool:
    while time.monotonic() < end_at:
        if condition():
            return True
        time.sleep(0.02)
    return False
