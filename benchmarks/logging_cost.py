"""What logging adds to converting: ``log_model`` against convert alone plus writing the files."""

from __future__ import annotations

import contextlib
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .context import Context, conversion, module
from .record import Measurement
from .timing import Rounds, ratio

RATIO = "log_model ÷ (convert + writing the files)"


def log_model(context: Context) -> Measurement:
    """``log_model`` of one network to a local MLflow, parity and latency aside."""
    import mlflow

    import mlflow_trt
    from mlflow_trt import plan
    from mlflow_trt.evidence import recorded

    name = "mlp" if context.quick else "resnet50"
    work = context.work / "logging"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{work / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("cost", (work / "artifacts").as_uri()))

    model, arguments = module(name), conversion(name)
    mlflow_trt.log_model(module("mlp"), name="warm-up", **conversion("mlp"))  # imports, the store's tables, the builder

    times: dict[str, Rounds] = {
        "convert": [],
        "writing the files": [],
        "log_model, less measuring": [],
        "measuring": [],
    }

    def logged() -> None:
        with seconds_of(recorded, "measure") as measuring:
            begin = time.perf_counter()
            mlflow_trt.log_model(model, name=name, **arguments)
            seconds = time.perf_counter() - begin
        times["log_model, less measuring"].append([seconds - sum(measuring)])
        times["measuring"].append([sum(measuring)])

    def by_hand() -> None:
        begin = time.perf_counter()
        built = mlflow_trt.convert(model, **arguments)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=work) as folder:
            plan.write([built], Path(folder))
            end = time.perf_counter()
        times["convert"].append([middle - begin])
        times["writing the files"].append([end - middle])

    last_turn = 0.0
    for turn in range(context.several(3, 1)):
        begin = time.monotonic()
        if begin + last_turn > context.deadline():
            break
        for way in (logged, by_hand) if turn % 2 == 0 else (by_hand, logged):
            way()
        last_turn = time.monotonic() - begin
    together = [
        [convert + write] for (convert,), (write,) in zip(times["convert"], times["writing the files"], strict=True)
    ]
    measurement = Measurement(
        values={RATIO: ratio(times["log_model, less measuring"], together)},
        notes=[
            f"The network is {name}; MLflow's store is SQLite and a local folder.",
            "Measuring (parity, latency, the latency curve, the layer table) is timed apart and taken off.",
            f"Medians of {len(together)} turns.",
        ],
    )
    for what, rounds in times.items():
        measurement.add(what, rounds, "s")
    added = [sum(a) - sum(b) for a, b in zip(times["log_model, less measuring"], together, strict=True)]
    measurement.add("log_model, less measuring, − (convert + writing)", [[statistics.median(added)]], "s")
    return measurement


@contextlib.contextmanager
def seconds_of(owner: Any, name: str) -> Iterator[list[float]]:
    """Collects how long each call of a module's function takes."""
    original, found = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            found.append(time.perf_counter() - begin)

    setattr(owner, name, timed)
    try:
        yield found
    finally:
        setattr(owner, name, original)
