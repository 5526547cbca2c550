"""The list of benchmarks: what each is to reach, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import mlflow_trt

from . import echoing, logging_cost, memory, mixing, predicting, serving, startup
from .context import Context, has_gpu
from .record import Figure, Goal, Measurement


@dataclass(frozen=True)
class Benchmark:
    """An entry of the suite."""

    name: str
    title: str
    function: str
    """``module:function`` within this package."""
    goals: tuple[Goal, ...] = ()
    budget: float = 60
    """Seconds on a GPU machine; ends with its process after that."""

    def load(self) -> Callable[[Context], Measurement]:
        """Returns the function."""
        module, _, name = self.function.partition(":")
        function: Callable[[Context], Measurement] = getattr(import_module(f".{module}", __package__), name)
        return function


def prepare(context: Context) -> Measurement:
    """Converts and saves the models that the benchmarks share, so that none of them pays for it."""
    measurement = Measurement()
    # Without a GPU nothing else runs ResNet-50.
    for name in ("mlp", "resnet50") if has_gpu() else ("mlp",):
        begin = time.perf_counter()
        record = mlflow_trt.inspect(context.model(name)).plans[0]
        measurement.figures += [
            Figure(f"{name}: converted and saved", "s", time.perf_counter() - begin),
            Figure(f"{name}: plan", "MB", record.file.size / 1e6),
        ]
        reason = f" ({record.parity.reason})" if record.parity.reason else ""
        measurement.notes.append(f"{name}: parity {record.parity.status}{reason}")
        for point in record.latency.points:
            measurement.figures.append(Figure(f"{name}: engine(…), batch {point.batch}, p50", "ms", point.p50_ms))
    return measurement


SUITE = (
    Benchmark("prepare", "Converting the models that the benchmarks share", "suite:prepare", (), 240),
    Benchmark(
        "resnet50_batch1",
        "ResNet-50 FP16, batch 1: pyfunc predict against a bare loop over the same engine",
        "predicting:resnet50_batch1",
        (Goal(predicting.RATIO, 1.10, "×"),),
        60,
    ),
    Benchmark(
        "resnet50_batch8",
        "ResNet-50 FP16, batch 8: pyfunc predict against a bare loop over the same engine",
        "predicting:resnet50_batch8",
        (Goal(predicting.RATIO, 1.05, "×"),),
        60,
    ),
    Benchmark(
        "tiny_mlp",
        "A tiny MLP, batch 1: what a call costs beside the engine's work",
        "predicting:tiny_mlp",
        (Goal(predicting.ABOVE, 100, "µs"),),
        60,
    ),
    Benchmark(
        "sizes_in_turn",
        "ResNet-50 FP16: batch sizes 1 and 8 in turn",
        "mixing:in_turn",
        (Goal(mixing.IN_TURN, 1.2, "×"),),
        60,
    ),
    Benchmark(
        "random_sizes",
        "ResNet-50 FP16: a random mix of batch sizes 1 to 32",
        "mixing:random_mix",
        (Goal(mixing.MIX, 1.5, "×"), Goal(mixing.MIX_SMALL, 1.5, "×")),
        200,
    ),
    Benchmark(
        "threads",
        "ResNet-50 FP16: 8 threads on one loaded model against 1",
        "mixing:threads",
        tuple(Goal(f"{mixing.THREADS}, batch {batch}", 1.25, "×", at_least=True) for batch in (1, 8)),
        120,
    ),
    Benchmark(
        "first_answer",
        "ResNet-50 FP16: from a new process to the first correct answer",
        "startup:first_answer",
        (Goal(startup.FIRST_ANSWER, 1.0, "s"),),
        150,
    ),
    Benchmark(
        "log_model",
        "log_model against convert alone and writing the files",
        "logging_cost:log_model",
        (Goal(logging_cost.RATIO, 1.15, "×"),),
        400,
    ),
    Benchmark(
        "peak_memory",
        "Peak host memory of loading a plan of 2 GB",
        "memory:peak_memory",
        (Goal(memory.RATIO, 1.15, "×"),),
        240,
    ),
    Benchmark(
        "imports",
        "What importing this package adds to MLflow's own import",
        "startup:imports",
        (Goal(startup.IMPORT, 0.3, "s"),),
        120,
    ),
    Benchmark(
        "wrapper",
        "What mlflow.pyfunc adds to a call, the reference backend answering",
        "predicting:wrapper",
        (Goal(predicting.WRAPPER, 100, "µs"),),
        120,
    ),
    Benchmark(
        "echo",
        "An echo of image shapes over HTTP: this server, Triton, MLflow's own",
        "echoing:echo",
        (
            Goal(echoing.goal(echoing.PYTRITON, 1), 0.4, "×"),
            Goal(echoing.goal(echoing.PYTRITON, 8), 0.8, "×"),
            Goal(echoing.goal(echoing.BACKEND, 1), 0.4, "×"),
            Goal(echoing.goal(echoing.BACKEND, 8), 0.8, "×"),
            Goal(echoing.goal("MLflow, parquet", 1), 0.25, "×"),
            Goal(echoing.goal("MLflow, parquet", 8), 0.5, "×"),
            Goal(echoing.goal("MLflow, JSON", 1), 0.025, "×"),
            Goal(echoing.goal("MLflow, JSON", 8), 0.025, "×"),
        ),
        300,
    ),
    Benchmark(
        "serving_latency",
        "ResNet-50 FP16 behind mlflow-trt serve: one client, batch 1",
        "serving:latency",
        (Goal(serving.FLOAT32, 2.0, "ms"), Goal(serving.UINT8, 1.6, "ms")),
        240,
    ),
    Benchmark(
        "serving_concurrent",
        "ResNet-50 FP16 behind mlflow-trt serve: many clients of batch 1",
        "serving:concurrent",
        (Goal(serving.GAIN, 2.0, "×", at_least=True), Goal(serving.P99, 25, "ms")),
        180,
    ),
    Benchmark(
        "serving_moves",
        "ResNet-50 FP16 behind mlflow-trt serve: an alias that moves under the load of 64 clients",
        "serving:moves",
        (
            Goal(serving.MOVES, 200, "", at_least=True),
            Goal(serving.FAILED, 0, ""),
            Goal(serving.MIXED, 0, ""),
            Goal(serving.MEMORY, 1.05, "×"),
        ),
        900,
    ),
    Benchmark(
        "alternatives",
        "ResNet-50: beside PyTorch, torch.compile and MLflow's stock flavors",
        "predicting:alternatives",
        (),
        240,
    ),
)
