"""Everything of a model but MLflow's own files, in a folder: converted, written, measured on a GPU, described last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from .. import plan as _plan
from ..errors import SettingError, StoreError
from ..evidence import recorded
from ..plan import manifest as _manifest
from ..plan.files import Plan
from ..plan.manifest import Manifest
from . import imported
from .convert import convert
from .sources.graphs import is_graph
from .sources.stored import is_source

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch.export import ExportedProgram

ModelOrPlan = Union["torch.nn.Module", "ExportedProgram", "ModelProto", Plan, Sequence[Plan], bytes, str, Path]

MEASURE_TIMEOUT = 300.0
"""Seconds: most engines take a tenth of that; TensorRT may also never come back from compiling a kernel."""


@dataclass(frozen=True)
class Staged:
    """What is left to do is MLflow's: what can fail about the model itself has not failed."""

    folder: Path
    manifest: Manifest
    measurements: recorded.Measurements


def stage(
    model_or_plan: ModelOrPlan, folder: Path, program: str, measure_timeout: float | None, conversion: Mapping[str, Any]
) -> Staged:
    """Converts, writes, measures, and writes the manifest last: everything that can fail about the model itself."""
    if program not in ("include", "omit"):
        raise SettingError(f"program={program!r}", '"include" or "omit"', "choose one of the two")
    plans = _plans(model_or_plan, conversion)
    with _writing(folder):
        manifest = _plan.write_files(plans, folder, program=program == "include")
    manifest, measurements = recorded.measure(folder, manifest, measure_timeout)
    with _writing(folder):
        _manifest.write(folder, manifest)
    seconds = {**plans[0].seconds, **measurements.seconds}
    return Staged(folder, manifest, replace(measurements, seconds=seconds))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The model can't be written to {folder}: {error.strerror}.",
            "room for the plan and the program on this disk",
            "free space, or set TMPDIR to a folder on another disk",
        ) from error


def _plans(model_or_plan: Any, conversion: Mapping[str, Any]) -> Sequence[Plan]:
    """What to log, as plans: converted, read, or taken as they are."""
    if is_graph(model_or_plan) or is_source(model_or_plan):
        return [convert(model_or_plan, **conversion)]
    if isinstance(model_or_plan, (bytes, str, Path)):
        plans = imported.read_plans(model_or_plan)
    elif isinstance(model_or_plan, Plan):
        plans = [model_or_plan]
    elif isinstance(model_or_plan, Sequence) and model_or_plan and all(isinstance(p, Plan) for p in model_or_plan):
        plans = list(model_or_plan)
    else:
        return [convert(model_or_plan, **conversion)]
    if conversion:
        raise SettingError(
            f"The plan is built already, and {', '.join(sorted(conversion))} would be ignored.",
            "conversion arguments only beside a model that is still to be converted",
            "give them to mlflow_trt.convert, or leave them out",
        )
    return plans
