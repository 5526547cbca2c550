"""What is asked of a logged model without its plans."""

from __future__ import annotations

import pytest
from manifests import MANIFEST, MEASURED

import mlflow_trt
from mlflow_trt import CompatibilityError, SettingError
from mlflow_trt.flavor import inspection
from mlflow_trt.plan.manifest import Host

L4 = Host(gpu="NVIDIA L4", capability="8.9", os="linux", machine="x86_64", runtimes={"tensorrt_rtx": MEASURED.release})
TEXT = f"tensorrt_rtx=={MEASURED.release},sm_89"


@pytest.fixture
def folder(tmp_path):
    """A manifest alone: no plan is there to be read."""
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())
    return tmp_path


def test_the_manifest_is_read_and_nothing_else(folder):
    assert mlflow_trt.inspect(folder) == mlflow_trt.inspect(str(folder)) == MANIFEST


@pytest.mark.parametrize("host", [L4, TEXT])
def test_a_machine_is_named_by_text_or_by_its_parts(folder, host):
    report = mlflow_trt.check(folder, host)
    assert report.accepted == MEASURED
    assert [verdict.accepted for _, verdict in report.entries] == [True, False]


def test_without_a_machine_it_is_this_one(folder, monkeypatch):
    monkeypatch.setattr(inspection, "probe", lambda: L4)
    assert mlflow_trt.check(folder).host == L4
    assert mlflow_trt.check(folder).accepted == MEASURED


def test_a_machine_that_is_none_is_refused(folder):
    with pytest.raises(SettingError, match="a toaster"):
        mlflow_trt.check(folder, "a toaster")


def test_requirements_are_those_of_this_machine_s_plan(folder, monkeypatch):
    monkeypatch.setattr(inspection, "probe", lambda: L4)
    assert inspection.requirements(folder) == [f"tensorrt-rtx=={MEASURED.release}"]
    monkeypatch.setattr(inspection, "probe", lambda: L4.model_copy(update={"capability": "7.5"}))
    with pytest.raises(CompatibilityError, match=r"7\.5"):
        inspection.requirements(folder)
