"""What this package's tags, artifacts and folders are called in MLflow: one side writes them and another reads them.

They are part of the format: renaming one hides what earlier versions of this package wrote.
"""

from __future__ import annotations

# Tags of the logged model and of the registered version.
DIGEST = "mlflow_trt.digest"
"""SHA-256 of the first plan."""
TARGET = "mlflow_trt.target"
PRECISION = "mlflow_trt.precision"
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

# Artifacts of the run that logged a model, in folder_of(model_id).
BENCHMARK = "benchmark.json"
"""What ``mlflow-trt benchmark`` measured later."""
LAYERS = "layers.csv"
LATENCY_FIGURE = "latency_by_batch.png"

# Artifacts of a promotion, in promotion_folder(id) of the logged model.
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def folder_of(model_id: str) -> str:
    """Where a run keeps what was measured of a logged model."""
    return f"mlflow_trt/{model_id}"


def promotion_folder(identifier: str) -> str:
    """Where a logged model keeps the evidence of one promotion."""
    return f"promotions/{identifier}"
