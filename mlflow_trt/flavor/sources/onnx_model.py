"""A model of MLflow's flavor ``onnx``: the graph's file, and the weights beside it."""

from __future__ import annotations

from pathlib import Path

from ...errors import SettingError, StoreError
from .stored import StoredSource


def files_of(source: StoredSource) -> list[Path]:
    """The graph's file, and after it those that hold its weights.

    Raises:
        StoreError: One of them is missing or outside the model's folder, or the graph can't be read.
    """
    from ...conversion.from_onnx import model

    path = source.path("data")
    try:
        beside = sorted(model.external_files(model.read(path)))
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    except Exception as error:
        raise StoreError(
            f"{path.name} of {source.uri} can't be read: {type(error).__name__}: {str(error)[:300]}",
            "a graph in ONNX",
            "log the model again",
        ) from error
    weights = [(path.parent / name).resolve() for name in beside]
    for name, file in zip(beside, weights):
        if not file.is_file() or not file.is_relative_to(source.folder.resolve()):
            raise StoreError(
                f"{path.name} of {source.uri} has weights in {name}, which is no file of the model.",
                "all weights in the model's folder",
                "log the model again: mlflow.onnx.log_model(onnx.load(...), ...) takes them along",
            )
    return [path, *weights]


def _not_installed(error: ModuleNotFoundError) -> SettingError:
    return SettingError(
        f"{error.name} is not installed, and converting a graph in ONNX needs it.",
        "the conversion extra",
        'pip install "mlflow-trt[convert-onnx-rtx]"',
    )
