"""What MLflow's own files say of a model: its signature, its requirements, and the flavor's entry in MLmodel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from .. import _mlflow
from .._version import __version__
from ..plan.compatibility import requirement
from ..plan.manifest import FILE_NAME, Interface, Manifest
from .load import MODEL_CONFIG

FLAVOR_NAME = "mlflow_trt"


def get_default_pip_requirements(manifest: Manifest | None = None) -> list[str]:
    """What a host needs to load a model: this package, the plan's exact TensorRT release, no torch.

    Args:
        manifest: The model's; where its plans are of several releases, the first of each runtime counts.
    """
    releases: dict[str, str] = {}
    for record in manifest.plans if manifest else ():
        releases.setdefault(record.runtime, requirement(record))
    return [f"mlflow-trt=={__version__}", f"numpy=={np.__version__}", *releases.values()]


def signature_of(interface: Interface) -> ModelSignature:
    """The MLflow signature of an engine: named tensors, -1 for a dynamic size."""

    def schema(tensors: Sequence[Any]) -> Schema:
        return Schema(
            [
                TensorSpec(np.dtype(t.dtype), tuple(d if isinstance(d, int) else -1 for d in t.shape), t.name)
                for t in tensors
            ]
        )

    return ModelSignature(
        inputs=schema(interface.inputs) if interface.inputs else None, outputs=schema(interface.outputs)
    )


def write(
    folder: Path,
    manifest: Manifest,
    model: Model,
    *,
    signature: ModelSignature | None = None,
    metadata: dict[str, Any] | None = None,
    **environment: Any,
) -> None:
    """Writes MLmodel and the environment files into a folder that holds a manifest and its files.

    Args:
        folder: The model's.
        manifest: What it holds.
        model: Gets the flavor, its signature and metadata.
        signature: None: made from the manifest.
        metadata: Stored in MLmodel.
        **environment: As :func:`mlflow_trt._mlflow.write_model` takes them: ``conda_env``, ``pip_requirements``, …
    """
    if signature is not None:
        model.signature = signature
    elif manifest.interface is not None:
        model.signature = signature_of(manifest.interface)
    if metadata is not None:
        model.metadata = metadata
    _mlflow.write_model(
        folder,
        model,
        flavor=FLAVOR_NAME,
        configuration=_configuration(manifest),
        loader_module="mlflow_trt",
        model_config=MODEL_CONFIG,
        requirements=get_default_pip_requirements(manifest),
        **environment,
    )


def _configuration(manifest: Manifest) -> dict[str, Any]:
    """What MLmodel says under the flavor's key: enough to tell versions apart without the manifest.

    Of dynamic dimensions the signature says -1; here are their names, which tell which of them are one.
    """

    def shapes(tensors: Sequence[Any]) -> dict[str, list[Any]]:
        return {t.name: list(t.shape) for t in tensors}

    interface = manifest.interface
    return {
        "manifest": FILE_NAME,
        "inputs": shapes(interface.inputs) if interface else None,
        "outputs": shapes(interface.outputs) if interface else None,
        "plans": [
            {
                "path": record.file.path,
                "runtime": record.runtime,
                "release": record.release,
                "capabilities": list(record.capabilities or ()) or None,
                "precision": record.precision.requested,
                "sha256": record.file.sha256,
            }
            for record in manifest.plans
        ],
    }
