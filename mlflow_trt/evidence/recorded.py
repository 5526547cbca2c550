"""What was measured of a model, and where MLflow's pages show it: parameters, metrics, tags, a plot, a table."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import plan as _plan
from ..conversion import child_process, progress
from ..errors import DeviceError, ParityError
from ..plan import degenerate
from ..plan import manifest as _manifest
from ..plan import parity as _parity
from ..plan.manifest import File, Host, LatencyRecord, Manifest, ParityRecord, PlanRecord
from ..store import StoredModel
from . import measuring_child, names

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurements:
    """What a GPU told beyond the manifest. Empty without one."""

    latency_by_batch: Sequence[Mapping[str, float]] = ()
    """Rows of ``batch``, ``p50_ms``, ``p99_ms`` of the first plan that loads here."""
    layers: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The engine's layers, as TensorRT's inspector tells them."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each step took."""


def measure(folder: Path, manifest: Manifest, timeout: float | None = None) -> tuple[Manifest, Measurements]:
    """Measures each plan of a model's folder that loads on this machine.

    Args:
        folder: Holds the files that the manifest lists; runtime caches are added.
        manifest: What it holds; it need not be written yet.
        timeout: Seconds that the measuring of one plan may take; what was not measured by then says so. None: any time.

    Returns:
        The manifest with figures; without a GPU, or for plans of other machines, with the reason why there are none.

    Raises:
        DeviceError: The measuring process crashed.
        ParityError: A plan's answers differ from the model's own beyond the tolerance.
    """
    from ..plan import compatibility, host

    here = host.probe()
    records: list[PlanRecord] = []
    measurements = Measurements()
    for record in manifest.plans:
        if here.gpu is None:
            record = _not_measured(record, "the machine that logged it has no GPU")
        elif not compatibility.check(record, here).accepted:
            record = _not_measured(record, "it does not load on the machine that logged it")
        else:
            of_the_plan = manifest.model_copy(update={"plans": (record,)})
            record, measured = _measure_plan(StoredModel(str(folder), of_the_plan, folder), timeout)
            measurements = measurements if measurements.seconds else measured
        records.append(record)
    return manifest.model_copy(update={"plans": tuple(records)}), measurements


def _not_measured(record: PlanRecord, reason: str) -> PlanRecord:
    """Says why there are no figures, where there are none yet."""
    reason += "; mlflow-trt benchmark measures it where it loads"
    update = {
        name: figures.model_copy(update={"reason": reason})
        for name, figures in (("parity", record.parity), ("latency", record.latency))
        if figures.status == "not_measured"
    }
    return record.model_copy(update=update)


def _measure_plan(model: StoredModel, timeout: float | None) -> tuple[PlanRecord, Measurements]:
    """Measures a model's only plan in a process of its own, which an engine that hangs or crashes ends alone."""
    record = model.manifest.plans[0]
    said: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-") as scratch, progress.shown() as listener:
        job = {"model": str(model.folder.resolve()), "manifest": model.manifest.to_json()}
        (Path(scratch) / measuring_child.JOB).write_text(json.dumps(job))

        def heard(message: dict[str, Any]) -> None:
            if "progress" in message:
                if listener is not None:
                    listener(*message["progress"])
            elif "done" in message:
                seconds[message["done"]] = message["seconds"]
                _logger.info("Measuring: %s took %.1f s", message["done"], message["seconds"])
            else:
                said.update(message)

        late = None
        environment = child_process.package_on_path(os.environ)
        try:
            child_process.run(
                measuring_child.__name__, Path(scratch), timeout=timeout, environment=environment, heard=heard
            )
        except child_process.TookTooLongError:
            late = f"{said.get('doing', 'load')} was not done when the {timeout:g} s for measuring were over"
            _logger.warning("Not all of the engine could be measured: %s.", late)
        except child_process.DiedError as end:
            raise DeviceError(
                f"The process that measured the engine {end}, at the step {said.get('doing', 'load')}.{end.tail}",
                "an engine that answers",
                "see its last words above; look at the GPU's memory; try another release of TensorRT",
            ) from None
    update: dict[str, Any] = {}
    if "parity" in said:
        update["parity"] = parity = ParityRecord.model_validate(said["parity"])
        if parity.status == "failed":
            refuse_failed(parity, record, _explained(model))
    if "latency" in said:
        update["latency"] = LatencyRecord.model_validate(said["latency"])
    if "runtime_cache" in said:
        update["runtime_cache"] = File.model_validate(said["runtime_cache"])
    record = record.model_copy(update=update)
    if late is not None:
        record = _not_measured(record, late)
    return record, Measurements(said.get("latency_by_batch", ()), said.get("layers", ()), seconds)


def refuse_failed(parity: ParityRecord, record: PlanRecord, reasons: Sequence[str] = ()) -> None:
    """Raises a ParityError with the whole table if a plan failed its parity check.

    Args:
        parity: The verdict.
        record: The plan's.
        reasons: What explains it; these come first.
    """
    if parity.status == "failed":
        raise ParityError(
            "\n".join(
                [
                    *reasons,
                    f"The engine's answers differ from the model's own ({_plan.folder_name(record)}):",
                    _parity.text(parity),
                ]
            ),
            "every output within the tolerance at every profile point",
            (f"{degenerate.REMEDY}; " if any(reason.startswith(degenerate.START) for reason in reasons) else "")
            + "try another precision or TensorRT release, look for the layer that differs, or give tolerance= "
            "if this is good enough for the model's task",
        )


def _explained(model: StoredModel) -> list[str]:
    golden = model.golden()
    return explanations(model.folder, model.manifest, golden) if golden else []


def explanations(folder: Path, manifest: Manifest, golden: _plan.GoldenTensors) -> list[str]:
    """What may explain a failed comparison: the model's own answers, and layers that leave float16's range."""
    precision = manifest.plans[0].precision.requested
    reasons = degenerate.reasons(golden, precision)
    if precision == "fp16" and manifest.program and not manifest.program.is_onnx and manifest.interface is not None:
        try:
            import torch

            from ..conversion import ranges

            program = torch.export.load(_plan.verify(folder, manifest.program.file))
            reasons += ranges.explain(program, manifest.interface, golden)
        except Exception as error:  # an explanation, which must not take the place of what it explains
            _logger.debug("Where the network leaves float16 could not be told: %s", error)
    return reasons


def params(manifest: Manifest) -> dict[str, Any]:
    """Parameters of the logged model: what it is."""
    record = manifest.plans[0]
    built_on = record.built_on or Host()
    values = {
        names.RUNTIME_PARAM: record.runtime,
        names.RELEASE_PARAM: record.release,
        names.CAPABILITIES_PARAM: ", ".join(record.capabilities or ()) or None,
        names.PRECISION_PARAM: record.precision.requested,
        names.PROFILES_PARAM: "; ".join(_profile_text(profile) for profile in record.profiles or ()) or None,
        names.PLANS_PARAM: len(manifest.plans),
        names.GPU_PARAM: built_on.gpu,
        names.TORCH_PARAM: built_on.torch,
        names.TORCH_TENSORRT_PARAM: built_on.torch_tensorrt,
        **{names.setting_param(setting): value for setting, value in record.settings.items()},
    }
    return {name: str(value)[:500] for name, value in values.items() if value is not None}


def tags(manifest: Manifest) -> dict[str, str]:
    """Tags of the logged model and the registered version: what a search or a deployment asks for."""
    record = manifest.plans[0]
    return {
        names.DIGEST: record.file.sha256,
        names.TARGET: ", ".join(_plan.folder_name(r) for r in manifest.plans),
        names.PRECISION: record.precision.requested or "model",
        **({names.CONVERTER: record.converter} if record.converter else {}),
        **({names.SOURCE: manifest.source.uri} if manifest.source else {}),
        names.PARITY: record.parity.status,
        names.LATENCY: record.latency.status,
    }


def metrics(record: PlanRecord) -> dict[str, float]:
    """Figures of one plan: size in bytes, times in seconds or ms as their names say, worst parity of all points."""
    figures: dict[str, float] = {names.PLAN_BYTES_METRIC: record.file.size}
    if record.build_seconds is not None:
        figures[names.BUILD_SECONDS_METRIC] = record.build_seconds
    return {**figures, **parity_metrics(record.parity), **latency_metrics(record.latency)}


def parity_metrics(parity: ParityRecord) -> dict[str, float]:
    """The worst of all outputs and profile points; empty if not measured."""
    outputs = [output for point in parity.points for output in point.outputs]
    if not outputs:
        return {}
    worst = {
        "max_abs": max(o.max_abs for o in outputs),
        "rel_l2": max(o.rel_l2 for o in outputs),
        "cosine": min(o.cosine for o in outputs),
    }
    top1 = [o.top1 for o in outputs if o.top1 is not None]
    if top1:
        worst["top1"] = min(top1)
    return {names.parity_metric(figure): value for figure, value in worst.items()}


def latency_metrics(latency: LatencyRecord) -> dict[str, float]:
    """p50 and p99 at every profile point, in ms; empty if not measured."""
    return {
        names.latency_metric(point.profile, point.point, figure): getattr(point, figure)
        for point in latency.points
        for figure in ("p50_ms", "p99_ms")
    }


def log(info: Any, run_id: str, manifest: Manifest, measurements: Measurements, *, step: int = 0) -> None:
    """Logs a model's figures to its run.

    Args:
        info: MLflow's ``ModelInfo`` of the logged model.
        run_id: The run.
        manifest: The model's.
        measurements: Of this machine's GPU.
        step: The run's step.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.time import get_current_time_millis

    client = MlflowClient()
    now = get_current_time_millis()
    steps = {names.seconds_metric(step_name): seconds for step_name, seconds in measurements.seconds.items()}
    figures = [
        Metric(key, value, now, step, model_id=info.model_id, run_id=run_id)
        for key, value in {**metrics(manifest.plans[0]), **steps}.items()
    ]
    curve = names.LATENCY_BY_BATCH_METRIC
    rows = [
        # A metric's step is the x axis of MLflow's chart: here it is the batch size.
        Metric(curve, row["p50_ms"], now, int(row["batch"]), model_id=info.model_id, run_id=run_id)
        for row in measurements.latency_by_batch
    ]
    _log_batch(
        client,
        run_id,
        [*figures, *rows],
        [Param(key, value) for key, value in params(manifest).items()],
        [RunTag(key, value) for key, value in tags(manifest).items()],
    )
    if manifest.source is not None and manifest.source.model_id is not None:
        _log_source(client, run_id, manifest.source.model_id)
    folder = names.folder_of(info.model_id)
    client.log_text(run_id, manifest.to_json(), f"{folder}/{_manifest.FILE_NAME}")
    if measurements.layers:
        client.log_text(run_id, _csv(measurements.layers), f"{folder}/{names.LAYERS}")
    if measurements.latency_by_batch and find_spec("matplotlib"):  # the light runtime has none
        client.log_figure(run_id, latency_figure(measurements.latency_by_batch), f"{folder}/{names.LATENCY_FIGURE}")


def _log_source(client: Any, run_id: str, model_id: str) -> None:
    """Makes the source an input of the run, which MLflow shows beside its outputs; one that this server knows."""
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    try:
        client.get_logged_model(model_id)  # MLflow would take any id: of another server, or of a model that was deleted
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    except MlflowException as error:
        _logger.warning("The source %s is not among the run's inputs: %s", model_id, error)


def latency_figure(rows: Sequence[Mapping[str, float]]) -> Any:
    """Draws latency over batch size as a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    batches = [row["batch"] for row in rows]
    for name in ("p50_ms", "p99_ms"):
        axes.plot(batches, [row[name] for row in rows], marker="o", label=name.removesuffix("_ms"))
    axes.set(xlabel="batch size", ylabel="latency (ms)", title="Latency by batch size", xscale="log", ylim=(0, None))
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _log_batch(client: Any, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
    """Logs everything in one request, since a store may take a transaction for each."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        # A run's parameters never change: a second model of another make in the same run keeps its own on the model.
        _logger.debug("The run already has other parameters: %s", error)
        client.log_batch(run_id, metrics=metrics, tags=tags)


def _profile_text(profile: _manifest.Profile) -> str:
    def sizes(r: _manifest.ShapeRange) -> str:
        return "x".join(str(lo) if lo == hi else f"{lo}:{opt}:{hi}" for lo, opt, hi in zip(r.min, r.opt, r.max))

    return ", ".join(f"{name}[{sizes(r)}]" for name, r in profile.items())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
