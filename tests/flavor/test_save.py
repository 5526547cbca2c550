"""Saving, logging and loading through MLflow: what lands in folder, run and registry, and what never does."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.models import infer_signature
from plans import Classifier

import mlflow_trt
from mlflow_trt import SettingError, StoreError, TrtError
from mlflow_trt.evidence import recorded
from mlflow_trt.flavor import mlmodel
from mlflow_trt.plan.files import read_header
from mlflow_trt.plan.manifest import ParityRecord

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def torch_answer(x=X):
    import torch

    with torch.no_grad():
        return {name: value.numpy() for name, value in Classifier.module()(torch.from_numpy(x)).items()}


def all_models():
    return mlflow.search_logged_models(output_format="list")


def all_runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def assert_answers(result):
    expected = torch_answer()
    assert set(result) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6)


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


def test_pyfunc_takes_arrays_frames_and_its_raw_model_is_the_engine(classifier_folder):
    loaded = mlflow.pyfunc.load_model(str(classifier_folder), model_config={"backend": "reference"})

    assert_answers(loaded.predict({"x": X}))
    import pandas as pd

    assert_answers(loaded.predict(pd.DataFrame({"x": list(X)})))
    engine = loaded.get_raw_model()
    assert engine.backend == "reference"
    np.testing.assert_allclose(engine(X)["scores"], torch_answer()["scores"], rtol=1e-5, atol=1e-6)


def test_results_say_which_backend_answered(classifier_folder):
    loaded = mlflow.pyfunc.load_model(str(classifier_folder), model_config={"backend": "reference"})

    assert loaded.predict({"x": X}).backend == "reference"


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

    found = mlflow.get_run(run.info.run_id).data
    assert found.metrics["trt.plan_bytes"] == len(classifier_plan.serialized)
    assert found.metrics["trt.build_seconds"] > 0
    assert found.params["trt.precision"] == "fp32"
    assert found.params["trt.release"] == classifier_plan.record.release
    assert found.tags["mlflow_trt.parity"] == classifier_plan.record.parity.status
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


def test_without_an_active_run_one_is_made_and_ended(classifier_plan):
    info = mlflow_trt.log_model(classifier_plan, "classifier")

    assert mlflow.active_run() is None
    assert [r.info.run_id for r in all_runs()] == [info.run_id]
    assert all_runs()[0].info.status == "FINISHED"


# ---- what must leave nothing behind -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp16"}, "precision would be ignored"),
        ({"optimization_level": 5}, "optimization_level would be ignored"),
        ({"program": "maybe"}, "maybe"),
        ({"artifact_path": "a"}, "artifact_path"),
    ],
)
def test_contradicting_arguments_touch_nothing(classifier_plan, arguments, message):
    with pytest.raises(SettingError, match=message):
        mlflow_trt.log_model(classifier_plan, "classifier", **arguments)

    assert all_models() == []
    assert all_runs() == []


def test_a_failed_conversion_touches_nothing(tmp_path):
    with pytest.raises(TrtError):
        mlflow_trt.save_model(Classifier.module(), tmp_path / "saved", [mlflow_trt.Input((2, 5))])
    with pytest.raises(TrtError):
        mlflow_trt.log_model(Classifier.module(), "classifier", [mlflow_trt.Input((2, 5))])

    assert not (tmp_path / "saved").exists()
    assert all_models() == []
    assert all_runs() == []


def test_a_program_that_torch_cannot_save_is_refused_or_left_out(classifier_plan, tmp_path):
    import collections

    import torch

    Answer = collections.namedtuple("Answer", "scores")  # never registered with torch.export

    class Named(torch.nn.Module):
        def forward(self, x):
            return Answer(x + 1)

    program = torch.export.export(Named(), (torch.ones(2),))
    plan = dataclasses.replace(classifier_plan, program=program)

    with pytest.raises(mlflow_trt.ConversionError, match="can't save"):
        mlflow_trt.save_model(plan, tmp_path / "saved")

    assert not (tmp_path / "saved").exists()
    mlflow_trt.save_model(plan, tmp_path / "saved", program="omit")


def test_a_folder_that_holds_something_is_left_alone(classifier_plan, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/mine.txt").write_text("keep")

    with pytest.raises(mlflow.exceptions.MlflowException, match="already exists"):
        mlflow_trt.save_model(classifier_plan, tmp_path / "saved")

    assert [p.name for p in (tmp_path / "saved").iterdir()] == ["mine.txt"]


def test_a_store_that_breaks_off_leaves_no_model(classifier_plan, monkeypatch):
    """The store's client is made to fail at its third file; a real store that dies is in test_store_s3."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def breaks_off(self, local_dir, artifact_path=None):
        raise OSError(errno.EPIPE, "the connection broke")

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", breaks_off)

    with pytest.raises(StoreError, match="the connection broke"):
        mlflow_trt.log_model(classifier_plan, "classifier", registered_model_name="classifier")

    assert all_models() == []
    assert all_runs() == []
    assert mlflow.search_model_versions() == []


def test_a_failed_registration_leaves_no_model(classifier_plan):
    mlflow.set_registry_uri("sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(StoreError, match="Logging broke off"):
        mlflow_trt.log_model(classifier_plan, "classifier", registered_model_name="classifier")

    assert all_models() == []


def test_failed_parity_shows_the_table(classifier_plan):
    figures = {"output": "scores", "max_abs": 1.0, "rel_l2": 0.5, "cosine": 0.8, "passed": False}
    failed = ParityRecord.model_validate(
        {"status": "failed", "points": [{"profile": 0, "point": "max", "outputs": [figures]}]}
    )

    with pytest.raises(mlflow_trt.ParityError, match=r"scores") as caught:
        recorded.refuse_failed(failed, classifier_plan.record)

    assert "max" in caught.value.message


def test_default_requirements_without_a_model_name_no_runtime():
    assert [r.split("==")[0] for r in mlmodel.get_default_pip_requirements()] == ["mlflow-trt", "numpy"]


# ---- engines that someone else built ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "path", "text"])
def test_a_bare_engine_is_described_by_its_header(classifier_plan, tmp_path, kind):
    path = classifier_plan.save(tmp_path / "model.engine")
    source = {"bytes": classifier_plan.serialized, "path": path, "text": str(path)}[kind]

    mlflow_trt.save_model(source, tmp_path / "saved")

    manifest = mlflow_trt.inspect(tmp_path / "saved")
    record = manifest.plans[0]
    assert (record.runtime, record.release) == (classifier_plan.record.runtime, classifier_plan.record.release)
    assert record.capabilities == classifier_plan.record.capabilities
    assert record.file.sha256 == classifier_plan.record.file.sha256
    assert record.parity.status == "not_measured"
    assert (tmp_path / "saved" / record.file.path).read_bytes() == classifier_plan.serialized


def test_a_saved_folder_is_logged_again_as_it_is(classifier_folder):
    info = mlflow_trt.log_model(classifier_folder, "again")

    again, before = mlflow_trt.inspect(info.model_uri), mlflow_trt.inspect(classifier_folder)
    assert again == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"PK\x03\x04" + bytes(100), "is a zip archive"), (b"vtrt", "ends after 4 bytes")],
)
def test_what_is_no_engine_is_refused(tmp_path, content, message):
    (tmp_path / "model.engine").write_bytes(content)

    with pytest.raises(mlflow_trt.PlanError, match=message):
        mlflow_trt.save_model(tmp_path / "model.engine", tmp_path / "saved")

    assert not (tmp_path / "saved").exists()


def test_a_missing_engine_file_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"no\.engine"):
        mlflow_trt.save_model(Path("no.engine"), tmp_path / "saved")


@pytest.mark.parametrize("limit", [1_000, 20_000], ids=["plan", "program"])
def test_a_full_disk_is_an_error_that_leaves_nothing(classifier_folder, tmp_path, limit):
    """A limit on the size of files stands in for a full disk: the same write fails, with EFBIG for ENOSPC."""
    sizes = {f.path.split("/")[0]: f.size for f in mlflow_trt.inspect(classifier_folder).files()}
    assert sizes["plans"] > 1_000
    code = f"""
import resource, mlflow_trt
plans = mlflow_trt.flavor.imported.read_plans({str(classifier_folder)!r})
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    mlflow_trt.save_model(plans, {str(tmp_path / "saved")!r})
except mlflow_trt.StoreError as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import mlflow_trt.flavor.imported\n{code}"], capture_output=True, text=True
    )

    assert "can't be written" in done.stdout, done.stderr
    assert not (tmp_path / "saved").exists()
