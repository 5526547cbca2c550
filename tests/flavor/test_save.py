"""Saving, logging and loading through MLflow: what lands in folder, run and registry, and what never does."""

from __future__ import annotations

import dataclasses

import mlflow
import pytest
from classifier import Classifier
from mlflow.models import infer_signature

import mlflow_trt
from mlflow_trt import TrtError
from mlflow_trt.evidence import recorded
from mlflow_trt.plan.files import read_header
from mlflow_trt.plan.manifest import ParityRecord

from .answers import X, assert_answers, torch_answer


def test_a_module_becomes_a_registered_version_that_predicts():
    info = mlflow_trt.log_model(
        Classifier.module(),
        "classifier",
        [mlflow_trt.Input(((1, 2, 8), 4), name="x")],
        precision="fp16",
        compute_capabilities=["8.6"],
        registered_model_name="classifier",
        metadata={"team": "vision"},
        tags={"owner": "me"},
        params={"epochs": 3},
    )

    assert info.registered_model_version == 1
    manifest = mlflow_trt.inspect("models:/classifier/1")
    assert manifest.plans[0].precision.requested == "fp16"
    assert manifest.plans[0].capabilities == ("8.6",)
    assert manifest.plans[0].parity.status == "not_measured"
    loaded = mlflow.pyfunc.load_model("models:/classifier/1", model_config={"backend": "reference"})
    assert loaded.metadata.metadata == {"team": "vision"}
    assert_answers(loaded.predict({"x": X}))
    model = mlflow.get_logged_model(info.model_id)
    assert model.tags["owner"] == "me"
    assert model.tags["mlflow_trt.digest"] == manifest.plans[0].file.sha256
    assert model.params["epochs"] == "3"
    assert model.params["trt.precision"] == "fp16"
    figures = {metric.key: metric.value for metric in model.metrics}
    assert all(figures[f"trt.seconds.{step}"] > 0 for step in ("export", "golden", "build"))
    version = mlflow.MlflowClient().get_model_version("classifier", "1")
    assert version.tags["mlflow_trt.digest"] == manifest.plans[0].file.sha256
    assert version.tags["mlflow_trt.converter"] == manifest.plans[0].converter == "torch_tensorrt"


def test_the_folder_is_as_documented(classifier_folder):
    plan = mlflow_trt.inspect(classifier_folder).plans[0]

    names = {p.relative_to(classifier_folder).as_posix() for p in classifier_folder.rglob("*") if p.is_file()}
    assert names == {
        *("MLmodel", "manifest.json", "requirements.txt", "conda.yaml", "python_env.yaml"),
        *("golden/inputs.safetensors", "golden/outputs.safetensors", "program/model.pt2"),
        plan.file.path,
    }
    assert plan.file.path.startswith(f"plans/{plan.runtime}-{plan.release}-sm")
    header = read_header((classifier_folder / plan.file.path).read_bytes())
    assert (header.runtime, header.release) == (plan.runtime, plan.release)


def test_a_caller_may_give_requirements_signature_code_and_files(classifier_plan, tmp_path):
    (tmp_path / "helper.py").write_text("A = 1\n")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    signature = infer_signature({"x": X}, torch_answer())

    mlflow_trt.save_model(
        classifier_plan,
        tmp_path / "saved",
        signature=signature,
        code_paths=[str(tmp_path / "helper.py")],
        extra_files=[str(tmp_path / "labels.txt")],
        extra_pip_requirements=["pillow"],
        input_example={"x": X},
    )

    assert mlflow.models.Model.load(str(tmp_path / "saved")).signature == signature
    assert (tmp_path / "saved/code/helper.py").exists()
    assert (tmp_path / "saved/extra_files/labels.txt").exists()
    assert "pillow" in (tmp_path / "saved/requirements.txt").read_text().split()
    assert mlflow.models.Model.load(str(tmp_path / "saved")).saved_input_example_info


def test_the_program_can_be_left_out(classifier_plan, tmp_path):
    mlflow_trt.save_model(classifier_plan, tmp_path / "saved", program="omit")

    assert not (tmp_path / "saved/program").exists()
    with pytest.raises(TrtError, match="program"):
        mlflow_trt.load_model(tmp_path / "saved", backend="reference")


def test_several_plans_of_one_model_make_one_version(classifier_plan, tmp_path):
    other = converted("8.6")

    mlflow_trt.save_model([classifier_plan, other], tmp_path / "saved")

    plans = mlflow_trt.inspect(tmp_path / "saved").plans
    assert [p.capabilities for p in plans] == [classifier_plan.record.capabilities, ("8.6",)]
    release = plans[0].release
    assert mlflow_trt.check(tmp_path / "saved", f"tensorrt_rtx=={release},sm_86,os=linux").accepted == plans[0]


def converted(capability):
    return mlflow_trt.convert(
        Classifier.module(),
        [mlflow_trt.Input(((1, 2, 8), 4), name="x")],
        precision="fp32",
        compute_capabilities=[capability],
    )


def test_a_run_gets_the_figures(classifier_plan):
    with mlflow.start_run() as run:
        info = mlflow_trt.log_model(classifier_plan, "classifier", step=7)

    logged = mlflow.get_run(run.info.run_id).data
    assert logged.metrics["trt.plan_bytes"] == len(classifier_plan.serialized)
    assert logged.metrics["trt.build_seconds"] > 0
    assert logged.params["trt.precision"] == "fp32"
    assert logged.params["trt.release"] == classifier_plan.record.release
    assert logged.tags["mlflow_trt.parity"] == classifier_plan.record.parity.status
    assert mlflow.MlflowClient().get_metric_history(run.info.run_id, "trt.plan_bytes")[0].step == 7
    of_the_model = {m.key: m.value for m in mlflow.get_logged_model(info.model_id).metrics}
    assert of_the_model["trt.plan_bytes"] == len(classifier_plan.serialized)
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/mlflow_trt/{info.model_id}/manifest.json")
    assert '"format_version": 1' in text


def test_two_models_in_one_run_keep_their_own_parameters(classifier_plan):
    changed = dataclasses.replace(
        classifier_plan,
        manifest=classifier_plan.manifest.model_copy(
            update={"plans": (classifier_plan.record.model_copy(update={"settings": {"optimization_level": 5}}),)}
        ),
    )
    with mlflow.start_run():
        first = mlflow_trt.log_model(classifier_plan, "one")
        second = mlflow_trt.log_model(changed, "two")

    assert "trt.settings.optimization_level" not in mlflow.get_logged_model(first.model_id).params
    assert mlflow.get_logged_model(second.model_id).params["trt.settings.optimization_level"] == "5"


def test_failed_parity_shows_the_table(classifier_plan):
    figures = {"output": "scores", "max_abs": 1.0, "rel_l2": 0.5, "cosine": 0.8, "passed": False}
    failed = ParityRecord.model_validate(
        {"status": "failed", "points": [{"profile": 0, "point": "max", "outputs": [figures]}]}
    )

    with pytest.raises(mlflow_trt.ParityError, match=r"scores") as caught:
        recorded.refuse_failed(failed, classifier_plan.record)

    assert "max" in caught.value.message
