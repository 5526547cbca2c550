"""Engines that somebody else built, and folders that were saved before."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlflow_trt
from mlflow_trt import SettingError


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
