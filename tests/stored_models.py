"""Models that MLflow's own flavors wrote, to convert from; the oldest and the newest MLflow call it differently."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
"""An input of the network below."""


def network() -> Any:
    """4 numbers in, 3 out."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()


def pytorch(*, pickled: bool = False, **changes: Any) -> dict[str, Any]:
    """Arguments of ``mlflow.pytorch.save_model`` and ``log_model``."""
    import mlflow.pytorch

    newer = "serialization_format" in inspect.signature(mlflow.pytorch.save_model).parameters
    if newer:
        kind = {"serialization_format": "pickle" if pickled else "pt2"}
    else:
        kind = {} if pickled else {"export_model": True}
    return {
        "pytorch_model": network(),
        "input_example": EXAMPLE,
        "signature": mlflow.models.infer_signature(EXAMPLE, EXAMPLE[:, :3]),
        "pip_requirements": ["torch"],  # or MLflow loads the model in a process of its own to see what it needs
        **kind,
        **changes,
    }


def save_pytorch(folder: Path, **arguments: Any) -> Path:
    """Saves the network."""
    import mlflow.pytorch

    mlflow.pytorch.save_model(path=str(folder), **pytorch(**arguments))
    return folder


def log_pytorch(name: str | None = None, **arguments: Any) -> Any:
    """Logs the network, and registers it where there is a name."""
    import mlflow.pytorch

    return mlflow.pytorch.log_model(name="net", registered_model_name=name, **pytorch(**arguments))


def graph(weights: int = 4096) -> Any:
    """A graph in ONNX that multiplies; MLflow keeps weights of this size in a file of their own."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(weights * 4, dtype=np.float32).reshape(weights, 4)
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


def save_onnx(folder: Path, **arguments: Any) -> Path:
    """Saves the graph."""
    import mlflow.onnx

    given = {"pip_requirements": ["onnx"], **arguments}
    mlflow.onnx.save_model(given.pop("onnx_model", None) or graph(), str(folder), **given)
    return folder
