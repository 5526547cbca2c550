"""A plan goes in, an engine that answers comes out; nothing here imports torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import SettingError
from ..plan.api import Backend, Engine, Result
from ..plan.compatibility import SelectedPlan, describe, select
from ..plan.files import folder_name
from ..plan.host import check_index, probe
from ..plan.manifest import Manifest

if TYPE_CHECKING:
    from .engine import TensorRTEngine as TensorRTEngine
    from .reference import ReferenceEngine as ReferenceEngine

__all__ = ["Backend", "Engine", "ReferenceEngine", "Result", "TensorRTEngine", "load"]

_logger = logging.getLogger(__name__)


def load(
    folder: Path,
    manifest: Manifest,
    *,
    device: int = 0,
    backend: str = "tensorrt",
    max_contexts: int = 2,
    memory_limit: int | None = None,
    selected: SelectedPlan | None = None,
    **settings: Any,
) -> Engine:
    """Loads a model from its folder.

    Args:
        folder: Where the manifest's files are; of the plans, only the chosen one need be there.
        manifest: The model's manifest.
        device: Index of the GPU.
        backend: ``"tensorrt"``, or ``"reference"`` to run the logged program on the CPU, with PyTorch or ONNX
            Runtime. Never chosen for you: where no plan loads, this fails.
        max_contexts: How many calls run on the GPU at once; further ones wait.
        memory_limit: Bytes of GPU memory that execution contexts and their buffers may take, beside the engine's
            weights; None: a quarter of what is free once the engine is loaded.
        selected: The plan to load, if it was selected already; None: the first that loads on this host.
        **settings: Further settings of :class:`~mlflow_trt.engine.engine.TensorRTEngine`.

    Raises:
        SettingError: The backend is not known, or a setting has a value that can't be honoured.
        CompatibilityError: No plan loads on this host; the message says why, plan by plan.
        PlanError: The plan's file is missing, cut short, altered, or TensorRT refused it.
        ManifestError: Plan and manifest disagree.
        DeviceError: No driver, no such GPU, or not enough of its memory.
    """
    if backend not in get_args(Backend):
        raise SettingError(
            f"The backend {backend!r} is not known.", f"one of {', '.join(get_args(Backend))}", "choose one of these"
        )
    if backend == "reference":
        from .reference import ReferenceEngine

        reference = ReferenceEngine(folder, manifest)
        _logger.info(
            "backend=reference, as asked: %s on the CPU answers, with the program that the plans were built from",
            "ONNX Runtime" if manifest.program is not None and manifest.program.is_onnx else "PyTorch",
        )
        return reference
    if selected is None:
        check_index(device)
        selected = select(manifest, probe(device))
    record, report = selected.record, selected.report
    from .engine import TensorRTEngine

    engine = TensorRTEngine(
        folder,
        record,
        manifest.interface,
        device=device,
        max_contexts=max_contexts,
        memory_limit=memory_limit,
        host=report.host,
        **settings,
    )
    over = "; ".join(f"{folder_name(r)}: {' '.join(x.found for x in v.reasons)}" for r, v in report.passed_over())
    _logger.info(
        "backend=tensorrt: the plan %s answers on %s%s",
        folder_name(record),
        describe(report.host),
        f". Passed over: {over}" if over else "",
    )
    return engine


def __getattr__(name: str) -> Any:
    if name == "TensorRTEngine":
        from .engine import TensorRTEngine

        return TensorRTEngine
    if name == "ReferenceEngine":
        from .reference import ReferenceEngine

        return ReferenceEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
