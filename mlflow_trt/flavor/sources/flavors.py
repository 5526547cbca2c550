"""Which flavor of a stored model is converted, and what to do about those that can't be."""

from __future__ import annotations

from collections.abc import Collection

from ...errors import SettingError

ONNX = "onnx"
PYTORCH = "pytorch"
CONVERTED = (PYTORCH, ONNX)

_REMEDIES = {
    "mlflow_trt": "load, check or serve it as it is: it is a TensorRT engine already; or convert the model that it was "
    "made of (mlflow-trt inspect names it where it is known)",
    "transformers": "load it with mlflow.transformers.load_model and convert the module in it (pipeline.model), or log "
    "that with mlflow.pytorch.log_model first",
    "sentence_transformers": "load it with mlflow.sentence_transformers.load_model and convert the module in it, or "
    "log that with mlflow.pytorch.log_model first",
}
_OTHERWISE = "export it to ONNX, log that with mlflow.onnx.log_model, and give that version"


def choose(flavors: Collection[str], uri: str) -> str:
    """Chooses the flavor that is converted.

    Args:
        flavors: Those of the model, as MLmodel names them.
        uri: The model's, for the message.

    Raises:
        SettingError: It has none that can be converted.
    """
    found = next((flavor for flavor in CONVERTED if flavor in flavors), None)
    if found is None:
        raise SettingError(
            f"{uri} has the flavors {', '.join(sorted(flavors))}." if flavors else f"{uri} has no flavor.",
            f"a model of MLflow's flavor {' or '.join(CONVERTED)}",
            next((remedy for flavor, remedy in _REMEDIES.items() if flavor in flavors), _OTHERWISE),
        )
    return found
