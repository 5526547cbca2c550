"""What this package's tags, parameters, metrics, artifacts and folders are called in MLflow: what one side writes and
another reads.

They are part of the format: renaming one hides what earlier versions of this package wrote.
"""

from __future__ import annotations

# Tags of the logged model and of the registered version.
DIGEST = "mlflow_trt.digest"
"""SHA-256 of the first plan."""
TARGET = "mlflow_trt.target"
PRECISION = "mlflow_trt.precision"
CONVERTER = "mlflow_trt.converter"
"""Where it is known."""
SOURCE = "mlflow_trt.source"
"""The URI of the model in MLflow that it was converted from, where there is one."""
PARITY = "mlflow_trt.parity"
LATENCY = "mlflow_trt.latency"

# Tags of promotion.
MOVE = "mlflow_trt.move."
"""A move of an alias: ``…<alias>.<number>`` on the registered model, ``…<id>`` on the version that became holder."""
REFUSED = "mlflow_trt.refused."
"""The last refusal to give a version an alias: ``…<alias>``, on the version."""
CLAIM = "mlflow_trt.claim"
"""Who is moving an alias just now."""
EVALUATED = "mlflow_trt.evaluated"
"""The version that a run of ``mlflow.models.evaluate`` is about."""

# Parameters of the logged model and of its run.
RUNTIME_PARAM = "trt.runtime"
RELEASE_PARAM = "trt.release"
CAPABILITIES_PARAM = "trt.capabilities"
PRECISION_PARAM = "trt.precision"
PROFILES_PARAM = "trt.profiles"
PLANS_PARAM = "trt.plans"
GPU_PARAM = "trt.gpu"
TORCH_PARAM = "trt.torch"
TORCH_TENSORRT_PARAM = "trt.torch_tensorrt"

# Metrics of the logged model and of its run.
PLAN_BYTES_METRIC = "trt.plan_bytes"
BUILD_SECONDS_METRIC = "trt.build_seconds"
LATENCY_BY_BATCH_METRIC = "trt.latency_by_batch.p50_ms"
"""Its step is the batch size."""

# Artifacts of the run that logged a model, in folder_of(model_id).
BENCHMARK = "benchmark.json"
"""What ``mlflow-trt benchmark`` measured later."""
LAYERS = "layers.csv"
LATENCY_FIGURE = "latency_by_batch.png"

# Artifacts of a promotion, in promotion_folder(id) of the logged model.
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def setting_param(setting: str) -> str:
    """The parameter that holds a setting of Torch-TensorRT."""
    return f"trt.settings.{setting}"


def seconds_metric(step: str) -> str:
    """How long a step of converting or measuring took."""
    return f"trt.seconds.{step}"


def parity_metric(figure: str) -> str:
    """The worst figure of all outputs and profile points: ``max_abs``, ``rel_l2``, ``cosine`` or ``top1``."""
    return f"trt.parity.{figure}"


def latency_metric(profile: int, point: str, figure: str) -> str:
    """A figure at a profile point: ``p50_ms`` or ``p99_ms``."""
    return f"trt.latency.{profile}.{point}.{figure}"


def folder_of(model_id: str) -> str:
    """Where a run keeps what was measured of a logged model."""
    return f"mlflow_trt/{model_id}"


def promotion_folder(identifier: str) -> str:
    """Where a logged model keeps the evidence of one promotion."""
    return f"promotions/{identifier}"
