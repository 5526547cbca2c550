"""Measures a logged model on the machine that has the GPU, which need not be the one that built it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import store
from ..errors import ManifestError
from ..evidence import measure, names, recorded
from ..plan.manifest import LatencyRecord, Manifest, ParityRecord
from ..plan.parity import tolerance_of
from . import load

if TYPE_CHECKING:
    from ..engine.engine import TensorRTEngine


@dataclass(frozen=True)
class BenchmarkReport:
    """What this machine measured."""

    manifest: Manifest
    parity: ParityRecord
    latency: LatencyRecord
    backend: str
    logged_to: str | None
    """The run that holds the figures; None: the model belongs to none."""


def benchmark(
    model_uri: str | Path,
    *,
    device: int = 0,
    backend: Literal["tensorrt", "reference"] = "tensorrt",
    runs: int = 100,
) -> BenchmarkReport:
    """Measures parity and latency of a logged model here, and logs them to the model's run and as its tags.

    With ``backend="reference"`` the latency of the logged program on the CPU is measured; parity is then not measured,
    since it would compare the program with itself, and nothing is logged.

    Args:
        model_uri: A local folder, or any URI that MLflow takes for a model.
        device: Index of the CUDA device.
        backend: What to measure.
        runs: Timed calls at each profile point.

    Returns:
        The figures. A failed parity check is a figure here, not an error.

    Raises:
        CompatibilityError: No plan of the model loads here.
        DeviceError: There is no GPU.
        ManifestError: The model has no golden tensors to compare with.
    """
    model = store.open_model(model_uri)
    golden = model.golden()
    if golden is None:
        raise ManifestError(
            f"{model_uri} has no golden tensors.",
            "a model that was converted by mlflow-trt",
            "measure the engine with inputs of your own through mlflow_trt.load_model",
        )
    plan_digest: str | None = None
    with load.load_stored(model, device=device, backend=backend) as engine:
        latency = measure.measure_latency(engine, golden, runs)
        if backend == "reference":
            parity = ParityRecord(
                status="not_measured", reason="the reference backend is what an engine is compared with"
            )
        else:
            record = cast("TensorRTEngine", engine).record
            tolerance = tolerance_of(record)
            parity = measure.measure_parity(engine, golden, tolerance)
            plan_digest = record.file.sha256
    logged_to = _log(str(model_uri), plan_digest, parity, latency) if plan_digest else None
    return BenchmarkReport(model.manifest, parity, latency, backend, logged_to)


def _log(model_uri: str, plan_digest: str, parity: ParityRecord, latency: LatencyRecord) -> str | None:
    if store.local_folder(model_uri) is not None:
        return None
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.models import get_model_info
    from mlflow.utils.time import get_current_time_millis

    info: Any = get_model_info(model_uri)
    client = MlflowClient()
    tags = {names.PARITY: parity.status, names.LATENCY: latency.status}
    if info.model_id:
        client.set_logged_model_tags(info.model_id, tags)
    run_id: str | None = info.run_id
    if run_id:
        now = get_current_time_millis()
        figures = {**recorded.parity_metrics(parity), **recorded.latency_metrics(latency)}
        client.log_batch(
            run_id, metrics=[Metric(k, v, now, 0, model_id=info.model_id, run_id=run_id) for k, v in figures.items()]
        )
        measured = {"plan": plan_digest, "parity": parity.model_dump(), "latency": latency.model_dump()}
        client.log_dict(run_id, measured, f"{names.folder_of(info.model_id)}/{names.BENCHMARK}")
    return run_id
