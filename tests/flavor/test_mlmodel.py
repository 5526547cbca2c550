"""What MLflow's own files say of a model."""

from __future__ import annotations

import mlflow
import numpy as np
import yaml

import mlflow_trt
from mlflow_trt.flavor import mlmodel


def test_mlmodel_describes_the_plans_and_the_tensors(classifier_folder):
    record = mlflow_trt.inspect(classifier_folder).plans[0]
    described = yaml.safe_load((classifier_folder / "MLmodel").read_text())

    assert described["flavors"]["mlflow_trt"]["plans"] == [
        {
            "path": record.file.path,
            "runtime": record.runtime,
            "release": record.release,
            "capabilities": list(record.capabilities),
            "precision": "fp32",
            "sha256": record.file.sha256,
        }
    ]
    assert described["flavors"]["mlflow_trt"]["inputs"] == {"x": ["batch", 4]}
    assert described["flavors"]["mlflow_trt"]["outputs"] == {"scores": ["batch", 3], "mean": ["batch"]}
    assert described["flavors"]["python_function"]["loader_module"] == "mlflow_trt"
    signature = mlflow.models.Model.load(str(classifier_folder)).signature
    assert [(t.name, t.type, t.shape) for t in signature.inputs] == [("x", np.dtype("float32"), (-1, 4))]
    assert {(t.name, t.shape) for t in signature.outputs} == {("scores", (-1, 3)), ("mean", (-1,))}


def test_requirements_pin_the_release_and_hold_no_torch(classifier_folder):
    lines = (classifier_folder / "requirements.txt").read_text().splitlines()
    record = mlflow_trt.inspect(classifier_folder).plans[0]

    assert f"tensorrt-rtx=={record.release}" in lines
    assert f"mlflow-trt=={mlflow_trt.__version__}" in lines
    assert not [line for line in lines if "torch" in line]


def test_default_requirements_without_a_model_name_no_runtime():
    assert [r.split("==")[0] for r in mlmodel.get_default_pip_requirements()] == ["mlflow-trt", "numpy"]
