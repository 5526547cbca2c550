"""Models of the flavor onnx: the graph's file, and the weights beside it."""

from __future__ import annotations

import numpy as np
import pytest
import stored_models
import yaml

from mlflow_trt.errors import StoreError
from mlflow_trt.flavor.sources import onnx_model, stored

onnx = pytest.importorskip("onnx")


def files_of(folder):
    with stored.opened(folder) as source:
        return onnx_model.files_of(source)


def test_weights_beside_the_graph_are_found(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product")

    graph, weights = files_of(folder)

    assert graph == folder / "model.onnx"
    assert weights.stat().st_size >= 4096 * 4 * 4
    session = pytest.importorskip("onnxruntime").InferenceSession(str(graph))
    assert session.run(None, {"x": np.ones((1, 4096), np.float32)})[0].shape == (1, 4)


def test_a_graph_that_holds_its_weights_is_one_file(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product", save_as_external_data=False)

    assert files_of(folder) == [folder / "model.onnx"]


def test_weights_that_are_gone_are_named(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product")
    _, weights = files_of(folder)
    weights.unlink()

    with pytest.raises(StoreError, match=weights.name):
        files_of(folder)


def test_weights_outside_of_the_model_are_refused(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product")
    (tmp_path / "secret").write_bytes(b"\0" * 4096 * 4 * 4)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    next(e for e in model.graph.initializer[0].external_data if e.key == "location").value = "../secret"
    (folder / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(StoreError, match=r"\.\./secret"):
        files_of(folder)


def test_what_is_no_graph_is_said_to_be_none(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product")
    (folder / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(StoreError, match=r"model\.onnx .*can't be read"):
        files_of(folder)


def test_mlmodel_says_where_the_graph_is(tmp_path):
    folder = stored_models.save_onnx(tmp_path / "product", save_as_external_data=False)
    (folder / "model.onnx").rename(folder / "other.onnx")
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["onnx"]["data"] = "other.onnx"
    (folder / "MLmodel").write_text(yaml.safe_dump(content))

    assert files_of(folder) == [folder / "other.onnx"]
