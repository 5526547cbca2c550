"""Measuring a logged version after it was logged, and where the figures go."""

from __future__ import annotations

import json

import mlflow
import pytest

import mlflow_trt
from mlflow_trt.flavor import benchmark
from mlflow_trt.plan.host import probe
from mlflow_trt.plan.manifest import LatencyPoint, LatencyRecord, OutputParity, ParityPoint, ParityRecord


def test_the_reference_backend_is_timed_and_never_compared_with_itself(classifier_plan):
    info = mlflow_trt.log_model(classifier_plan, "classifier")

    report = mlflow_trt.benchmark(info.model_uri, backend="reference", runs=5)

    assert report.latency.status == "measured"
    assert {p.point for p in report.latency.points} == {"min", "between", "opt", "max"}
    assert all(0 < p.p50_ms <= p.p99_ms for p in report.latency.points)
    assert report.parity.status == "not_measured"
    assert report.logged_to is None
    assert mlflow.get_logged_model(info.model_id).tags["mlflow_trt.parity"] == classifier_plan.record.parity.status


@pytest.mark.skipif(probe().gpu is not None, reason="is about a machine without a GPU")
def test_without_a_gpu_the_engine_is_not_measured(classifier_folder):
    with pytest.raises(mlflow_trt.CompatibilityError, match="No NVIDIA GPU"):
        mlflow_trt.benchmark(classifier_folder)


def test_a_bare_engine_has_nothing_to_compare_with(classifier_plan, tmp_path):
    mlflow_trt.save_model(classifier_plan.serialized, tmp_path / "bare")

    with pytest.raises(mlflow_trt.ManifestError, match="no golden tensors"):
        mlflow_trt.benchmark(tmp_path / "bare")


def test_figures_go_to_the_run_the_model_and_its_tags(classifier_plan):
    """The figures are made up: what is tested is where they are found afterwards."""
    info = mlflow_trt.log_model(classifier_plan, "classifier")
    output = OutputParity(output="scores", max_abs=0.1, rel_l2=0.01, cosine=0.99, passed=True)
    parity = ParityRecord(status="passed", points=(ParityPoint(profile=0, point="max", outputs=(output,)),))
    point = LatencyPoint(profile=0, point="max", batch=8, p50_ms=1.5, p99_ms=2.0, runs=10)
    latency = LatencyRecord(status="measured", points=(point,))

    run_id = benchmark._log(info.model_uri, "0" * 64, parity, latency)

    assert run_id == info.run_id
    found = mlflow.get_run(run_id).data.metrics
    assert found["trt.parity.rel_l2"] == 0.01
    assert found["trt.latency.0.max.p50_ms"] == 1.5
    model = mlflow.get_logged_model(info.model_id)
    assert (model.tags["mlflow_trt.parity"], model.tags["mlflow_trt.latency"]) == ("passed", "measured")
    assert {m.key: m.value for m in model.metrics}["trt.parity.rel_l2"] == 0.01
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/mlflow_trt/{info.model_id}/benchmark.json")
    assert json.loads(text)["plan"] == "0" * 64
    assert ParityRecord.model_validate(json.loads(text)["parity"]) == parity
