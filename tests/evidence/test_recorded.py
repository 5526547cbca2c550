"""What is logged of a model's figures: names, worst cases, the plot, and why there are none."""

from __future__ import annotations

import csv
import io

import pytest
from manifests import MANIFEST

from mlflow_trt import ParityError
from mlflow_trt.evidence import recorded
from mlflow_trt.plan.manifest import LatencyPoint, LatencyRecord, OutputParity, ParityPoint, ParityRecord
from mlflow_trt.plan.parity import default_tolerance


def output(name, rel_l2, top1=None):
    return OutputParity(output=name, max_abs=rel_l2 * 2, rel_l2=rel_l2, cosine=1 - rel_l2, top1=top1, passed=True)


PARITY = ParityRecord(
    status="passed",
    tolerance=default_tolerance("fp16"),
    points=(
        ParityPoint(profile=0, point="min", outputs=(output("scores", 0.001, 1.0), output("mean", 0.002))),
        ParityPoint(profile=0, point="max", outputs=(output("scores", 0.003, 0.75), output("mean", 0.0))),
    ),
)


def test_parity_metrics_are_the_worst_of_all_points():
    assert recorded.parity_metrics(PARITY) == {
        "trt.parity.max_abs": 0.006,
        "trt.parity.rel_l2": 0.003,
        "trt.parity.cosine": 0.997,
        "trt.parity.top1": 0.75,
    }


def test_a_tag_names_the_source_where_there_is_one():
    assert recorded.tags(MANIFEST)["mlflow_trt.source"] == "models:/resnet/3"
    assert "mlflow_trt.source" not in recorded.tags(MANIFEST.model_copy(update={"source": None}))


def test_what_was_not_measured_gives_no_metrics():
    assert recorded.parity_metrics(ParityRecord(status="not_measured")) == {}
    assert recorded.latency_metrics(LatencyRecord(status="not_measured")) == {}


def test_latency_metrics_have_a_name_for_every_point():
    point = LatencyPoint(profile=1, point="max", batch=8, p50_ms=1.5, p99_ms=2.5, runs=100)

    assert recorded.latency_metrics(LatencyRecord(status="measured", points=(point,))) == {
        "trt.latency.1.max.p50_ms": 1.5,
        "trt.latency.1.max.p99_ms": 2.5,
    }


def test_without_a_gpu_the_manifest_says_why_and_what_to_do(classifier_folder):
    from mlflow_trt import inspect
    from mlflow_trt.plan.host import probe

    if probe().gpu is not None:
        pytest.skip("this machine has a GPU: see the GPU tests")
    record = inspect(classifier_folder).plans[0]

    assert record.parity.status == record.latency.status == "not_measured"
    assert record.parity.reason == record.latency.reason
    assert "no GPU" in record.parity.reason
    assert "mlflow-trt benchmark" in record.parity.reason


def test_a_failed_check_names_plan_point_and_output(classifier_plan):
    failed = PARITY.model_copy(update={"status": "failed"})

    with pytest.raises(ParityError, match="scores") as caught:
        recorded.refuse_failed(failed, classifier_plan.record)

    assert "max" in caught.value.found
    assert classifier_plan.record.release in caught.value.found
    recorded.refuse_failed(PARITY, classifier_plan.record)


def test_parameters_and_tags_describe_the_first_plan(classifier_plan):
    params = recorded.params(classifier_plan.manifest)

    assert params["trt.precision"] == "fp32"
    assert params["trt.profiles"] == "x[1:2:8x4]"
    assert params["trt.torch"] == classifier_plan.record.built_on.torch
    assert params["trt.settings.attn_bias_is_causal"] == "False"
    assert recorded.tags(classifier_plan.manifest)["mlflow_trt.digest"] == classifier_plan.record.file.sha256


def test_a_converter_that_is_not_known_has_no_tag(classifier_plan):
    plan = classifier_plan.record
    for converter, tagged in ((None, None), ("onnx", "onnx")):
        record = plan.model_copy(update={"converter": converter})
        tags = recorded.tags(classifier_plan.manifest.model_copy(update={"plans": (record,)}))
        assert tags.get("mlflow_trt.converter") == tagged


def test_layers_become_a_table():
    text = recorded._csv([{"name": "a", "type": "conv"}, {"name": "b", "type": "relu", "dtype": "Half"}])

    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[1]["dtype"] == "Half"


def test_the_plot_shows_both_percentiles_over_the_batch_size(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"batch": b, "p50_ms": 0.8 + b / 20, "p99_ms": 1.0 + b / 18} for b in (1, 2, 4, 8, 16, 32)]

    figure = recorded.latency_figure(rows)

    figure.savefig(tmp_path / "latency.png")
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["p50", "p99"]
    assert list(lines[0].get_xdata()) == [1, 2, 4, 8, 16, 32]
    assert figure.axes[0].get_ylim()[0] == 0
