# ruff: noqa: E402
"""A model of two inputs that are one batch, as a transformer's tokens and mask are, where the program ties them in no
way: every caller gets the answers of its own rows, and a call whose batches differ is refused by name, on every way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")

import forged
import mlflow.pyfunc

import mlflow_trt
from mlflow_trt.errors import InputError

from .running import Served, served

pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.slow]

LENGTH = 6
DIFFER = r"'mask' has the shape \(3, 6\): 3 in dimension 0 \(batch\), and 'ids' has 2"


class Pooled(torch.nn.Module):
    """The mean of the tokens that the mask shows; a mask's row is looked up by index. Whole numbers, so it is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(150.0).view(50, 3).flip(0))

    def forward(self, ids: Any, mask: Any) -> Any:
        rows = torch.arange(ids.shape[0])
        return (self.table[ids] * mask[rows][..., None].float()).sum(1)


def asked(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "ids": random.integers(0, 50, (rows, LENGTH)),
        "mask": random.integers(0, 2, (rows, LENGTH)),
    }


def right(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    table = np.arange(150, dtype=np.float32).reshape(50, 3)[::-1]
    return (table[ids] * mask[..., None]).sum(1)


def body(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "datatype": "INT64", "shape": a.shape, "data": a.ravel().tolist()}
            for name, a in inputs.items()
        ]
    }


WRONG = {"ids": asked(2, 0)["ids"], "mask": asked(3, 0)["mask"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("one-batch")
    ids = mlflow_trt.Input(((1, 4, 16), LENGTH), "int64")
    mlflow_trt.save_model(forged.described_plan(Pooled(), [ids, ids]), found / "m")
    return found


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    with served(folder, f"--model=m={folder / 'm'}", "--delay", "30", grpc=True) as found:
        yield found


def test_clients_at_once_are_joined_and_get_their_own_rows(server):
    def ask(seed):
        inputs = asked(1 + seed % 3, seed)
        found = server.infer(body(inputs))
        assert found.status_code == 200, found.text
        (output,) = found.json()["outputs"]
        np.testing.assert_array_equal(np.reshape(output["data"], output["shape"]), right(**inputs))

    before = batches(server)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(96)))
    rows, count = (after - known for after, known in zip(batches(server), before))
    assert rows == sum(1 + seed % 3 for seed in range(96))
    assert count < 96 / 2


def batches(server) -> tuple[float, float]:
    """The rows that ran, and in how many batches."""
    lines = [line.rpartition(" ") for line in server.get("/metrics").text.splitlines()]
    figures = {name: float(value) for name, _, value in lines if name.startswith("mlflow_trt_batch_rows")}
    return tuple(figures.get(f'mlflow_trt_batch_rows_{what}{{model="m"}}', 0.0) for what in ("sum", "count"))


def test_http_refuses_batches_that_differ(server):
    found = server.infer(body(WRONG))
    assert found.status_code == 400
    assert "3 in dimension 0 (batch), and 'ids' has 2" in found.json()["error"]
    assert server.infer(body(asked(2, 1))).status_code == 200


def test_grpc_refuses_batches_that_differ(server):
    grpc = pytest.importorskip("tritonclient.grpc")
    from tritonclient.utils import InferenceServerException

    tensors = []
    for name, array in WRONG.items():
        tensors.append(grpc.InferInput(name, list(array.shape), "INT64"))
        tensors[-1].set_data_from_numpy(array)
    with pytest.raises(InferenceServerException, match=DIFFER) as caught:
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}").infer("m", tensors)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_native_calls_and_predict_refuse_batches_that_differ(folder):
    with mlflow_trt.load_model(folder / "m", backend="reference") as engine:
        with pytest.raises(InputError, match=DIFFER):
            engine(*WRONG.values())
        with pytest.raises(InputError, match=DIFFER):
            engine.predict(WRONG)
        np.testing.assert_array_equal(engine(*asked(3, 2).values()), right(**asked(3, 2)))


def test_pyfunc_refuses_batches_that_differ(folder):
    model = mlflow.pyfunc.load_model(str(folder / "m"), model_config={"backend": "reference"})
    with pytest.raises(InputError, match=DIFFER):
        model.predict(WRONG)
