# ruff: noqa: E402
"""A graph in ONNX becomes a plan, without torch, and is logged, inspected and answered like any other."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

import mlflow_trt
from mlflow_trt import Input
from mlflow_trt.errors import ConversionError, PrecisionError, SettingError, UnsupportedOperatorError

from .made import answers
from .networks import convolutional, encoder, model, noise, perceptron

TARGET = {"compute_capabilities": ["8.6"]}


def converted(proto, **given):
    return mlflow_trt.convert(proto, **{**TARGET, **given})


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "text", "beside"])
def test_a_graph_is_given_in_any_form(tmp_path, form):
    proto, path = perceptron(), tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=form == "beside", location="weights", size_threshold=0)
    source = {"proto": proto, "bytes": proto.SerializeToString(), "text": str(path)}.get(form, path)
    plan = converted(source, dims={"batch": (1, 2, 4)})
    assert plan.manifest.interface.inputs[0].shape == ("batch", 8)
    assert plan.record.converter == "onnx"
    assert plan.serialized[:4] == b"vtrt"
    assert plan.record.capabilities == ("8.6",)
    assert plan.golden is not None
    assert {point for _, point, *_ in plan.golden.points()} == {"min", "opt", "max", "between"}


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [(None, "float32", True), ("fp32", "float32", False), ("fp16", "float16", True), ("bf16", "bfloat16", True)],
)
@pytest.mark.parametrize("make", [convolutional, encoder])
def test_the_networks_precision_is_what_was_asked_for(make, precision, dtype, tf32):
    dims = {"N": (1, 2, 4)} if make is convolutional else {"batch": (1, 2, 4), "tokens": (2, 8, 16)}
    plan = converted(make(), dims=dims, precision=precision)
    census = plan.record.precision.census
    assert plan.record.precision.requested == precision
    assert census.tf32 == tf32
    assert census.weight_bytes.get(dtype, 0) > 0.9 * sum(
        size for name, size in census.weight_bytes.items() if name.startswith(("float", "bf"))
    )
    assert all(t.dtype != "float16" for t in (*plan.manifest.interface.inputs, *plan.manifest.interface.outputs))


def test_a_logged_graph_is_inspected_and_answered_by_onnx_runtime(tmp_path):
    proto = encoder()
    mlflow_trt.save_model(proto, tmp_path / "m", dims={"batch": (1, 2, 4), "tokens": (2, 8, 16)}, **TARGET)
    manifest = mlflow_trt.inspect(tmp_path / "m")
    assert manifest.program is not None
    assert manifest.program.torch is None
    ids = np.random.default_rng(0).integers(0, 40, (3, 5))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = list(answers(proto, **given).values())
    with mlflow_trt.load_model(tmp_path / "m", backend="reference") as engine:
        answered = engine.predict(given)
        np.testing.assert_allclose(answered["pooled"], wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answered["states"], wanted[1], rtol=1e-5, atol=1e-6)
        assert engine(**given)["pooled"].shape == (3, 16)
        with pytest.raises(mlflow_trt.InputError, match="attention_mask"):
            engine.predict({**given, "attention_mask": given["attention_mask"][:2]})


def test_a_saved_model_is_saved_again_with_its_graph(tmp_path):
    mlflow_trt.save_model(perceptron(), tmp_path / "m", dims={"batch": (1, 2, 4)}, **TARGET)
    mlflow_trt.save_model(tmp_path / "m", tmp_path / "again")
    with mlflow_trt.load_model(tmp_path / "again", backend="reference") as engine:
        assert engine(noise(2, 8)).shape == (2, 3)


def test_several_profiles_are_built():
    plan = converted(perceptron(), inputs=[Input(profiles=[((1, 1, 1), 8), ((2, 4, 8), 8)])])
    assert [profile["x"].max for profile in plan.record.profiles] == [(1, 8), (8, 8)]


def test_weights_in_int4_are_built_for_gpus_that_have_it():
    proto = model(
        [("DequantizeLinear", "q s", "w", {"axis": 0, "block_size": 16}), ("MatMul", "x w", "y")],
        {"x": ("FLOAT", ["batch", 16])},
        {"y": ("FLOAT", ["batch", 4])},
        {"s": np.full((1, 4), 0.01, np.float32)},
        opset=21,
    )
    proto.ir_version = 10
    numbers = np.random.default_rng(0).integers(-7, 7, 64).tolist()
    proto.graph.initializer.append(onnx.helper.make_tensor("q", onnx.TensorProto.INT4, [16, 4], numbers))

    plan = converted(proto, dims={"batch": (1, 2, 4)}, compute_capabilities=None)
    assert "7.5" not in plan.record.capabilities
    assert "8.0" in plan.record.capabilities
    assert plan.record.precision.census.layers["int4"] == 1
    with pytest.raises(SettingError, match=r"holds int4, which the compute capability 7\.5 does not have"):
        converted(proto, dims={"batch": (1, 2, 4)}, compute_capabilities=["7.5", "8.6"])


def test_outputs_are_named():
    plan = converted(perceptron(), dims={"batch": 2}, output_names=["logits"])
    assert plan.manifest.interface.outputs[0].name == "logits"
    assert plan.golden is not None
    assert list(plan.golden.outputs) == ["0.opt/logits"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"converter": "torch_tensorrt"}, "is a graph in ONNX"),
        ({"inputs": [1], "arg_inputs": [1]}, "Both inputs and arg_inputs"),
        ({"decompose_attention": True}, "decompose_attention"),
        ({"precision": "int8"}, "precision 'int8' is unknown"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given, message):
    with pytest.raises(SettingError, match=message):
        converted(perceptron(), dims={"batch": 2}, **given)


def test_an_operator_that_tensorrt_lacks_is_named():
    proto = model([("Det", "x", "y")], {"x": ("FLOAT", [2, 3, 3])}, {"y": ("FLOAT", [2])})
    with pytest.raises(UnsupportedOperatorError, match="Det"):
        converted(proto)


def test_nothing_is_left_behind_by_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    proto = model([("Det", "x", "y")], {"x": ("FLOAT", [2, 3, 3])}, {"y": ("FLOAT", [2])})
    with pytest.raises(ConversionError):
        mlflow_trt.save_model(proto, tmp_path / "m", **TARGET)
    assert list(tmp_path.iterdir()) == []


def test_a_module_is_told_where_its_ranges_stand():
    torch = pytest.importorskip("torch", reason="needs the conversion extra")
    with pytest.raises(SettingError, match="dims was given, and the model is no graph in ONNX"):
        mlflow_trt.convert(torch.nn.Linear(2, 2), dims={"batch": 2})


def test_torch_is_not_imported(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(perceptron(), path)
    script = f"""
import sys
sys.modules["torch"] = None  # what imports it fails
import mlflow_trt, numpy, pathlib
mlflow_trt.save_model({str(path)!r}, {str(tmp_path / "m")!r}, dims={{"batch": (1, 2, 4)}}, precision="fp16")
with mlflow_trt.load_model({str(tmp_path / "m")!r}, backend="reference") as engine:
    print(engine(numpy.ones((2, 8), "float32")).shape)
try:
    mlflow_trt.convert({str(path)!r}, dims={{"batch": 2}}, optimisation_level=3)
except mlflow_trt.SettingError as error:
    print(error.expected)
folder = pathlib.Path({str(tmp_path)!r}, "torch")
folder.joinpath("data").mkdir(parents=True)
folder.joinpath("MLmodel").write_text("flavors: {{pytorch: {{model_data: data}}}}")
folder.joinpath("data/model.pt2").write_text("a program")
try:
    mlflow_trt.convert(folder)
except mlflow_trt.SettingError as error:
    print(error.found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "(2, 3)",
        "'optimization_level'?",
        "torch is not installed, and converting a PyTorch model needs it.",
    ], done.stderr


def test_the_command_line_takes_a_file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(perceptron(), path)
    command = [sys.executable, "-m", "mlflow_trt", "convert", str(path), "-o", str(tmp_path / "m"), "--json"]
    done = subprocess.run(
        [*command, "--dim", "batch=1:2:4", "--capability", "8.6"], capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout)["manifest"]["plans"][0]["converter"] == "onnx", done.stderr
    command[command.index("-o") + 1] += "2"
    missing = subprocess.run([*command[:-1], "--dim", "rows=1"], capture_output=True, text=True, timeout=120)
    assert missing.returncode != 0
    assert "no dynamic dimension 'rows'" in missing.stderr


def test_precision_that_the_network_has_not_is_refused(monkeypatch):
    """The cast is left out, as a fault of it would: the census tells."""
    from mlflow_trt.conversion.from_onnx import precision

    cast = precision.cast
    monkeypatch.setattr(precision, "cast", lambda model, wanted: cast(model, None))
    with pytest.raises(PrecisionError, match="are not float16"):
        converted(convolutional(), dims={"N": 2}, precision="fp16")
