"""A real plan for tests that need one but are not about building it: converted once for all workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


class Classifier:
    """The model behind ``classifier_folder``: 4 numbers in, 3 scores and the input's mean out."""

    @staticmethod
    def module():
        import torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.hidden = torch.nn.Linear(4, 16)
                self.out = torch.nn.Linear(16, 3)

            def forward(self, x):
                return {"scores": self.out(torch.relu(self.hidden(x))), "mean": x.mean(dim=1)}

        return Module().eval()


@pytest.fixture(scope="session")
def _classifier_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    pytest.importorskip("torch", reason="needs the conversion extra")
    from filelock import FileLock

    import mlflow_trt

    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "classifier"
    with FileLock(shared / "classifier.lock"):
        if not (folder / "MLmodel").exists():
            mlflow_trt.save_model(
                Classifier.module(), folder, [mlflow_trt.Input(((1, 2, 8), 4), name="x")], precision="fp32"
            )
    return folder


@pytest.fixture
def classifier_folder(_classifier_folder: Path, tmp_path: Path) -> Path:
    """A model as ``save_model`` wrote it, this test's own copy."""
    folder = tmp_path / "classifier"
    shutil.copytree(_classifier_folder, folder)
    return folder


@pytest.fixture
def classifier_plan(classifier_folder: Path):
    """The same as a plan."""
    from mlflow_trt.flavor.imported import read_plans

    return read_plans(classifier_folder)[0]
