"""The order of things: converted, written, measured, and the manifest last."""

from __future__ import annotations

import mlflow_trt
from mlflow_trt.evidence import recorded


def test_the_manifest_is_written_once_after_the_figures_are_taken(classifier_plan, tmp_path, monkeypatch):
    """A stand-in for a GPU: it looks at the folder when it is measured."""
    there = []

    def measured(folder, manifest, timeout):
        there.extend(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        record = manifest.plans[0].model_copy(update={"build_seconds": 4.5})
        return manifest.model_copy(update={"plans": (record,)}), recorded.Measurements()

    monkeypatch.setattr(recorded, "measure", measured)
    mlflow_trt.save_model(classifier_plan, tmp_path / "saved")

    assert classifier_plan.record.file.path in there
    assert "golden/outputs.safetensors" in there
    assert "manifest.json" not in there
    assert mlflow_trt.inspect(tmp_path / "saved").plans[0].build_seconds == 4.5
