"""On a GPU: engines made of graphs answer as ONNX Runtime does, at every size, in every precision."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import mlflow_trt

from .made import answers
from .networks import convolutional, encoder, gated, perceptron

pytestmark = pytest.mark.gpu

GRAPHS = {
    "perceptron": (perceptron, {"batch": (1, 4, 8)}),
    "convolutional": (convolutional, {"N": (1, 4, 8)}),
    "encoder": (encoder, {"batch": (1, 2, 4), "tokens": (2, 8, 16)}),
    "gated": (gated, {"batch": (1, 2, 4)}),
}


@pytest.mark.parametrize("precision", [None, "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_answers_as_onnx_runtime_does(tmp_path, name, precision):
    make, dims = GRAPHS[name]
    mlflow_trt.save_model(make(), tmp_path / "m", dims=dims, precision=precision)  # an engine that is wrong is refused
    record = mlflow_trt.inspect(tmp_path / "m").plans[0]
    assert record.parity.status == "passed", record.parity
    assert record.latency.status == "measured"
    assert {point.point for point in record.parity.points} == {"min", "opt", "max", "between"}


def test_it_is_served_from_what_was_saved(tmp_path):
    proto = encoder()
    mlflow_trt.save_model(proto, tmp_path / "m", dims={"batch": (1, 2, 4), "tokens": (2, 8, 16)}, precision="fp16")
    ids = np.random.default_rng(0).integers(0, 40, (3, 5))
    given = {"input_ids": ids, "attention_mask": (np.arange(5) < [[5], [2], [3]]).astype(np.int64)}
    wanted = answers(proto, **given)
    with mlflow_trt.load_model(tmp_path / "m") as engine:
        got = engine.predict(given)
    for name, array in wanted.items():
        assert np.linalg.norm(got[name] - array) <= 1e-2 * np.linalg.norm(array)
