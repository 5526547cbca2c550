"""From a model in MLflow to a version with an engine: what is recorded of where it came from, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import stored_models

import mlflow_trt
from mlflow_trt import SettingError, StoreError

pytest.importorskip("torch", reason="needs the conversion extra")

BATCH = [mlflow_trt.Input(((1, 2, 8), 4))]
BUILD = {"compute_capabilities": ["8.6"]}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where downloads go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(temporary: Path) -> list[Path]:
    """Downloads and staged models that are there; torch's own cache may be too."""
    return list(temporary.glob("mlflow-trt-*"))


def answers(uri, x):
    (y,) = (mlflow_trt.load_model(uri, backend="reference")(x),)
    return y


def expected(x):
    import torch

    with torch.no_grad():
        return stored_models.network()(torch.from_numpy(x)).numpy()


def test_a_registered_model_becomes_a_version_that_names_it(tracking_server, monkeypatch, temporary):
    """On a real server: the alias moves on, the source goes, and what was made of it stays."""
    tracking_server.use(monkeypatch)
    source = stored_models.log_pytorch("uris-net")
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("uris-net", "champion", "1")

    with mlflow.start_run() as run:
        info = mlflow_trt.log_model(
            "models:/uris-net@champion", "net", BATCH, registered_model_name="uris-net-trt", **BUILD
        )

    recorded = mlflow_trt.inspect("models:/uris-net-trt/1").source
    assert (recorded.uri, recorded.flavor, recorded.model_id) == ("models:/uris-net/1", "pytorch", source.model_id)
    assert [file.path for file in recorded.files] == ["data/model.pt2"]
    assert left(temporary) == []
    for tags in (
        client.get_model_version("uris-net-trt", "1").tags,
        client.get_logged_model(info.model_id).tags,
        client.get_run(run.info.run_id).data.tags,
    ):
        assert tags["mlflow_trt.source"] == "models:/uris-net/1"
    links = client.get_run(run.info.run_id)
    assert [model.model_id for model in links.inputs.model_inputs] == [source.model_id]
    assert [model.model_id for model in links.outputs.model_outputs] == [info.model_id]

    client.delete_registered_model("uris-net")
    client.delete_logged_model(source.model_id)
    np.testing.assert_allclose(
        answers("models:/uris-net-trt/1", stored_models.EXAMPLE), expected(stored_models.EXAMPLE), rtol=1e-5
    )
    with mlflow.start_run() as later:
        plan = mlflow_trt.convert(stored_models.network(), BATCH, **BUILD)
        gone = plan.manifest.model_copy(update={"source": recorded})
        mlflow_trt.log_model(type(plan)(plan.serialized, gone), "net")
    assert not client.get_run(later.info.run_id).inputs.model_inputs


def test_the_logged_example_is_a_golden_input(tmp_path):
    folder = stored_models.save_pytorch(tmp_path / "net")

    plan = mlflow_trt.convert(folder, BATCH, **BUILD)

    np.testing.assert_array_equal(plan.golden.inputs["0.user0/input"], stored_models.EXAMPLE)
    assert plan.manifest.source.uri == folder.as_uri()
    assert plan.manifest.source.model_id is None


def test_inputs_are_not_needed_where_the_signature_has_no_dynamic_dimension(tmp_path):
    static = stored_models.EXAMPLE[:1]
    signature = mlflow.models.ModelSignature(
        mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype("float32"), static.shape)])
    )
    folder = stored_models.save_pytorch(
        tmp_path / "net", pickled=True, signature=signature, input_example=static, extra_pip_requirements=None
    )

    plan = mlflow_trt.convert(str(folder), allow_pickle=True, **BUILD)

    assert plan.manifest.interface.inputs[0].shape == (1, 4)
    np.testing.assert_array_equal(plan.golden.inputs["0.user0/input"], static)
    assert plan.manifest.source.files[0].path == "data/model.pth"


def test_where_it_has_one_the_error_says_what_to_give(tmp_path):
    folder = stored_models.save_pytorch(tmp_path / "net")

    with pytest.raises(SettingError, match="dynamic dimensions") as caught:
        mlflow_trt.convert(folder)
    assert "--input 'float32[1:8:32,4]'" in caught.value.remedy


@pytest.mark.parametrize(
    "into",
    [
        lambda folder, _: mlflow_trt.convert(folder, BATCH),
        lambda folder, saved: mlflow_trt.save_model(folder, saved, BATCH),
        lambda folder, _: mlflow_trt.log_model(folder, "net", BATCH),
    ],
    ids=["convert", "save", "log"],
)
def test_a_pickle_is_refused_everywhere_and_nothing_is_left(tmp_path, into, temporary):
    folder = stored_models.save_pytorch(tmp_path / "net", pickled=True)

    with pytest.raises(SettingError, match="pickled Python code"):
        into(folder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert mlflow.search_logged_models(output_format="list") == []
    assert left(temporary) == []


def test_a_pickle_is_saved_where_it_is_allowed(tmp_path):
    folder = stored_models.save_pytorch(tmp_path / "net", pickled=True)

    mlflow_trt.save_model(folder, tmp_path / "saved", BATCH, allow_pickle=True, **BUILD)

    assert mlflow_trt.inspect(tmp_path / "saved").source.files[0].path == "data/model.pth"
    np.testing.assert_allclose(
        answers(tmp_path / "saved", stored_models.EXAMPLE), expected(stored_models.EXAMPLE), rtol=1e-5
    )


def test_an_engine_s_own_version_is_refused(classifier_plan):
    mlflow_trt.log_model(classifier_plan, "classifier", registered_model_name="classifier")

    with pytest.raises(SettingError, match="models:/classifier/1 has the flavors mlflow_trt") as caught:
        mlflow_trt.log_model("models:/classifier/1", "again", BATCH)
    assert "TensorRT engine already" in caught.value.remedy


def test_a_folder_of_this_package_is_logged_as_it_is(classifier_folder):
    info = mlflow_trt.log_model(classifier_folder, "classifier")

    assert mlflow_trt.inspect(info.model_uri).source is None


def test_an_alias_that_does_not_exist_leaves_no_run():
    before = len(mlflow.search_runs(search_all_experiments=True))

    with pytest.raises(StoreError, match="models:/net@champion can't be read"):
        mlflow_trt.log_model("models:/net@champion", "net", BATCH)
    assert len(mlflow.search_runs(search_all_experiments=True)) == before
    with pytest.raises(SettingError, match="holds no MLmodel"):
        mlflow_trt.convert("nowhere")


def test_plans_of_one_version_come_from_one_model(tmp_path):
    folder = stored_models.save_pytorch(tmp_path / "net")
    first, second = (
        mlflow_trt.convert(f, BATCH, compute_capabilities=[c]) for f, c in ((folder, "8.6"), (folder, "8.9"))
    )

    mlflow_trt.save_model([first, second], tmp_path / "saved")

    assert mlflow_trt.inspect(tmp_path / "saved").source == first.manifest.source


def test_a_logged_graph_becomes_a_version_that_names_it(tracking_server, monkeypatch, temporary):
    """On a real server, and the source goes: the version holds the graph with its weights."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import mlflow.onnx

    tracking_server.use(monkeypatch)
    graph = stored_models.graph()
    source = mlflow.onnx.log_model(graph, name="product", registered_model_name="product", pip_requirements=["onnx"])
    mlflow_trt.log_model(
        "models:/product/1", "engine", dims={"batch": (1, 2, 4)}, registered_model_name="product-trt", **BUILD
    )
    assert left(temporary) == []
    manifest = mlflow_trt.inspect("models:/product-trt/1")
    recorded = manifest.source
    assert (recorded.uri, recorded.flavor, recorded.model_id) == ("models:/product/1", "onnx", source.model_id)
    assert len([file for file in recorded.files if file.path != "model.onnx"]) == 1  # its weights lie beside it
    assert manifest.plans[0].converter == "onnx"
    assert manifest.interface.inputs[0].shape == ("batch", 4096)
    assert mlflow.MlflowClient().get_model_version("product-trt", "1").tags["mlflow_trt.source"] == "models:/product/1"

    mlflow.MlflowClient().delete_registered_model("product")
    mlflow.MlflowClient().delete_logged_model(source.model_id)
    x = np.random.default_rng(0).standard_normal((3, 4096), np.float32)
    product = x.astype(np.float64) @ np.arange(4096 * 4).reshape(4096, 4)
    np.testing.assert_allclose(answers("models:/product-trt/1", x), product, rtol=0, atol=1e-5 * np.abs(product).max())


def test_a_graph_is_none_of_torch_tensorrt_s(tmp_path):
    pytest.importorskip("onnx")
    folder = stored_models.save_onnx(tmp_path / "product")

    with pytest.raises(SettingError, match="is a graph in ONNX"):
        mlflow_trt.convert(folder, converter="torch_tensorrt")
