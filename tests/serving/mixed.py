"""A model with what MLflow's own ways have to carry: several inputs and outputs, numbers, truth values, pixels.

Where there is a GPU its engine answers; elsewhere the logged program does, as the operator's variable asks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_trt.flavor.load import CONFIG_VARIABLE
from mlflow_trt.plan import host

BACKEND = "reference" if host.probe().gpu is None else "tensorrt"
ENV = {CONFIG_VARIABLE: json.dumps({"backend": BACKEND})}
LOG_LINE = f"backend=reference, as {CONFIG_VARIABLE} asks"
MOST_ROWS = 8
SPARK_TABLE = "row long, ids array<long>, mask array<boolean>, image array<short>, weight float"
SPARK_TYPE = "scores array<float>, count long, above array<boolean>"


def module() -> Any:
    """Words, which of them count, an image and a weight → scores, how many words counted, which scores are above 0."""
    import torch

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(16, 8)
            self.out = torch.nn.Linear(8 + 12, 3)

        def forward(self, ids, mask, image, weight):
            words = (self.embed(ids) * mask.unsqueeze(-1).to(torch.float32)).sum(1)
            pixels = image.to(torch.float32).flatten(1) / 255
            scores = self.out(torch.cat([words, pixels], 1)) * weight.unsqueeze(1)
            return {"scores": scores, "count": mask.to(torch.int64).sum(1), "above": scores > 0}

    return Mixed().eval()


def inputs(rows: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "ids": random.integers(0, 16, (rows, 4)),
        "mask": random.random((rows, 4)) > 0.5,
        "image": random.integers(0, 256, (rows, 3, 2, 2), np.uint8),
        "weight": random.random(rows, np.float32),
    }


def flat(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each row's numbers in one line, which is how MLflow wants them in the columns of a table."""
    return {name: tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}


def columns(tensors: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    return {name: list(tensor) for name, tensor in tensors.items()}


def lists(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def assert_answers(found: Any, given: dict[str, np.ndarray]) -> None:
    """The outputs are PyTorch's, whether they came as arrays, lists or columns."""
    import torch

    with torch.no_grad():
        expected = {n: v.numpy() for n, v in module()(*(torch.from_numpy(given[n]) for n in given)).items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        array = np.asarray([np.asarray(row) for row in found[name]])
        assert array.dtype.kind == value.dtype.kind
        np.testing.assert_allclose(array, value, rtol=1e-3, atol=1e-3 if BACKEND == "tensorrt" else 1e-4)


@pytest.fixture(scope="session")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The model as ``save_model`` wrote it, converted once for all workers; only to be read."""
    pytest.importorskip("torch", reason="needs the conversion extra")
    from filelock import FileLock

    import mlflow_trt

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with FileLock(shared / "mixed.lock"):
        if not (shared / "mixed/MLmodel").exists():
            rows = (1, 2, MOST_ROWS)
            mlflow_trt.save_model(
                module(),
                shared / "mixed",
                [
                    mlflow_trt.Input((rows, 4), dtype="int64", name="ids"),
                    mlflow_trt.Input((rows, 4), dtype="bool", name="mask"),
                    mlflow_trt.Input((rows, 3, 2, 2), dtype="uint8", name="image"),
                    mlflow_trt.Input((rows,), name="weight"),
                ],
                precision="fp32",
            )
    return shared / "mixed"
