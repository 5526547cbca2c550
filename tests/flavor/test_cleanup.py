"""What fails leaves nothing behind: no folder, no run, no logged model, no version."""

from __future__ import annotations

import collections
import dataclasses
import errno
import subprocess
import sys

import mlflow
import pytest
from classifier import Classifier

import mlflow_trt
from mlflow_trt import SettingError, StoreError, TrtError
from mlflow_trt.evidence import recorded


def all_models():
    return mlflow.search_logged_models(output_format="list")


def all_runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_without_an_active_run_one_is_made_and_ended(classifier_plan):
    info = mlflow_trt.log_model(classifier_plan, "classifier")

    assert mlflow.active_run() is None
    assert [r.info.run_id for r in all_runs()] == [info.run_id]
    assert all_runs()[0].info.status == "FINISHED"


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


def test_a_refusal_by_parity_leaves_nothing(classifier_plan, tmp_path, monkeypatch):
    def refuses(folder, manifest, timeout):
        raise mlflow_trt.ParityError("The engine's answers differ from PyTorch's")

    monkeypatch.setattr(recorded, "measure", refuses)
    with pytest.raises(mlflow_trt.ParityError):
        mlflow_trt.save_model(classifier_plan, tmp_path / "saved")
    with pytest.raises(mlflow_trt.ParityError):
        mlflow_trt.log_model(classifier_plan, "classifier", registered_model_name="classifier")

    assert not (tmp_path / "saved").exists()
    assert all_models() == []
    assert all_runs() == []
    assert mlflow.search_model_versions() == []


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
