"""The MLflow flavor ``mlflow_trt``, reading side: an engine of our own, and what ``mlflow.pyfunc`` wraps."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import store

if TYPE_CHECKING:
    from ..engine import Engine
    from ..plan.compatibility import SelectedPlan
    from ..plan.manifest import Interface

# What mlflow.pyfunc.load_model(model_config=...) may override: MLflow passes on only keys that were saved.
MODEL_CONFIG: dict[str, Any] = {"backend": "tensorrt", "device": 0, "max_contexts": 2, "memory_limit": None}

# The same as JSON, for every load of a process: MLflow's own variable, and the only way where no code passes a
# model_config (`mlflow models serve`, `mlflow models predict`, Spark's executors).
CONFIG_VARIABLE = "MLFLOW_PYFUNC_INFERENCE_CONFIG"

_logger = logging.getLogger(__name__)


def load_model(
    model_uri: str | Path,
    *,
    device: int = 0,
    backend: Literal["tensorrt", "reference"] = "tensorrt",
    max_contexts: int = 2,
    memory_limit: int | None = None,
) -> Engine:
    """Loads a model as an engine that can be called, without torch and without ``mlflow.pyfunc``.

    Only the manifest and the one plan that this host accepts are downloaded; a second load finds them in the local
    cache.

    Args:
        model_uri: A local folder, or any URI that MLflow takes: ``models:/name@alias``, ``runs:/…``, ``s3://…``.
        device: Index of the CUDA device.
        backend: ``"reference"`` runs the logged program on the CPU instead, with PyTorch or ONNX Runtime; never chosen
            silently.
        max_contexts: How many calls may run on the GPU at once.
        memory_limit: Bytes of GPU memory that execution contexts may hold; None: a quarter of what is free.

    Returns:
        The engine. ``engine(x)`` answers in the model's own structure, ``engine.predict({name: array})`` with a dict.

    Raises:
        CompatibilityError: No plan of the model loads here; tells for each what it was built for and what is here.
        DeviceError: There is no driver, no GPU, no such device, or too little memory.
        ManifestError: The manifest is missing, malformed, of a newer format, or disagrees with the plan.
        PlanError: The plan was cut short or altered.
        StoreError: The store or registry can't be read.
    """
    return load_stored(
        store.open_model(model_uri),
        device=device,
        backend=backend,
        max_contexts=max_contexts,
        memory_limit=memory_limit,
    )


def load_stored(
    model: store.StoredModel,
    *,
    device: int = 0,
    backend: Literal["tensorrt", "reference"] = "tensorrt",
    max_contexts: int = 2,
    memory_limit: int | None = None,
    selected: SelectedPlan | None = None,
) -> Engine:
    """Loads a model whose manifest was read and, where the caller has asked for it already, whose plan was selected.

    See :func:`load_model` for the rest.
    """
    from .. import engine
    from ..plan import host

    if backend == "tensorrt" and selected is None:
        host.check_index(device)
        selected = model.select(host.probe(device))
    return engine.load(
        model.fetch(model.files_to_load(selected)),
        model.manifest,
        device=device,
        backend=backend,
        max_contexts=max_contexts,
        memory_limit=memory_limit,
        selected=selected,
    )


class _PyFuncModel:
    """What ``mlflow.pyfunc.load_model`` wraps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Answers a dict of arrays, a single array, or a DataFrame with a column for each input."""
        return self._engine.predict(as_inputs(data, self._engine.interface))

    def get_raw_model(self) -> Engine:
        """The engine, for :meth:`mlflow.pyfunc.PyFuncModel.get_raw_model`."""
        return self._engine


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _PyFuncModel:
    """MLflow's entry: loads the model's folder."""
    options = {**MODEL_CONFIG, **(model_config or {})}
    asked = dict(json.loads(os.environ.get(CONFIG_VARIABLE) or "{}")).get("backend")
    if asked == options["backend"] == "reference":
        # A warning: whoever reads the code does not know of it, and a server's log shows nothing less.
        _logger.warning(
            "backend=reference, as %s asks: the logged program answers on the CPU, no engine", CONFIG_VARIABLE
        )
    return _PyFuncModel(load_model(Path(path), **options))


def as_inputs(data: Any, interface: Interface) -> Any:
    """What an engine takes, from what MLflow hands a model: a dict of arrays, one array, a list, or a DataFrame.

    A table's columns have the types that it knows, and Spark knows no uint8 or float16. An array of another dtype than
    the input's becomes a list, which an engine takes where that loses nothing but float precision.
    """
    tensors = data if isinstance(data, (dict, np.ndarray)) else _arrays(data)
    if not isinstance(tensors, dict):
        return tensors
    dtypes = {tensor.name: tensor.dtype for tensor in interface.inputs}

    def fitting(name: str, tensor: Any) -> Any:
        of_another_dtype = (
            isinstance(tensor, np.ndarray) and tensor.ndim and tensor.dtype != dtypes.get(name, tensor.dtype)
        )
        return list(tensor) if of_another_dtype else tensor

    return {name: fitting(name, tensor) for name, tensor in tensors.items()}


def _arrays(data: Any) -> dict[str, np.ndarray]:
    """Arrays by name from what MLflow hands over when the model has no signature: a DataFrame or a list."""
    if hasattr(data, "columns"):
        return {str(column): np.stack([np.asarray(cell) for cell in data[column]]) for column in data.columns}
    return np.asarray(data)  # type: ignore[return-value]
