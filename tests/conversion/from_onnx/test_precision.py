"""A graph at a precision: dtypes, borders, weights, and real models."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mlflow_trt
from mlflow_trt.conversion.from_onnx.model import OnnxModel, read
from mlflow_trt.conversion.from_onnx.plain import plain
from mlflow_trt.conversion.from_onnx.precision import cast

from .written import answers, checked, model, network, operators, relative, rows

PRECISIONS = (None, "fp32", "tf32", "fp16", "bf16")
KINDS = {"float": np.float32, "double": np.float64, "float16": np.float16}


def layer(dtype="float", opset=22):
    weight = rows(4, 4).astype(KINDS.get(dtype, np.float32))
    body = "a = MatMul (x, w)  y = Relu (a)"
    own = model(f"g ({dtype}[N, 4] x) => ({dtype}[N, 4] y) {{ {body} }}", opset, w=weight)
    if dtype == "bfloat16":
        own.proto.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], weight.flatten()))
    return own


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["float", "double", "float16", "bfloat16"])
def test_inputs_and_outputs_are_what_callers_see(dtype, precision, tmp_path):
    own = layer(dtype)
    before = own.proto.SerializeToString(deterministic=True)
    made = cast(own, precision)
    assert own.proto.SerializeToString(deterministic=True) == before
    checked(made.model)
    public = "float16" if dtype == "float16" else "float32"
    assert {t.dtype for t in (*made.model.inputs, *made.model.outputs)} == {public}
    kept = {"float16": "float16", "bfloat16": "bfloat16"}.get(dtype, "float32")
    inside = {None: kept, "fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    assert made.dtypes == {public, inside}
    assert made.kept == ()
    (got,) = answers(made.model, tmp_path, True, x=rows(3, 4))
    assert relative(got, np.maximum(rows(3, 4) @ rows(4, 4), 0)) < 1e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_is_what_was_asked_for(precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    layers = network(cast(layer(opset=18), precision).model, tmp_path)
    products = {dtype for _, kind, dtype in layers if kind == "MATRIX_MULTIPLY"}
    assert products == {{"fp16": "HALF", "bf16": "BF16"}.get(precision, "FLOAT")}


def test_weights_with_a_default_are_inputs_no_more():
    own = layer()
    own.proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    for precision in PRECISIONS:
        made = cast(own, precision).model
        assert [value.name for value in made.proto.graph.input] == ["x"]
        checked(made)


def test_what_an_exporter_said_of_dtypes_is_not_believed_any_more():
    own = layer()
    own.proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 4]))
    checked(cast(own, "fp16").model)


def test_weights_in_a_file(tmp_path):
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "m.onnx"
    large = model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=rows(64, 64))
    onnx.save(large.proto, path, save_as_external_data=True, size_threshold=0)
    own = read(path)
    for precision in PRECISIONS:
        made = cast(own, precision).model
        outside = [t.data_location == TensorProto.EXTERNAL for t in made.proto.graph.initializer]
        assert outside == [precision not in ("fp16", "bf16")], "what stays as it is stays where it is"
        assert relative(answers(made, tmp_path, True, x=rows(3, 64))[0], rows(3, 64) @ rows(64, 64)) < 1e-2


def test_weights_of_more_than_protobuf_holds(tmp_path):
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * (50_000 * 12_000))
    own = model("g (float[N, 50000] x) => (float[N, 12000] y) { y = MatMul (x, w) }")
    weight = own.proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[50_000, 12_000])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    made = cast(OnnxModel(own.proto, tmp_path), None)
    assert made.model.folder == tmp_path
    assert made.dtypes == {"float32"}
    assert len(made.model.proto.SerializeToString()) < 1000


def test_a_convolution_in_an_opset_without_bfloat16(tmp_path):
    own = model("g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { y = Conv (x, w) }", 11, w=rows(2, 3, 1, 1))
    made = cast(own, "bf16")
    x = rows(1, 3, 8, 8)
    assert relative(answers(made.model, tmp_path, True, x=x)[0], answers(own, tmp_path, x=x)[0]) < 1e-2
    assert made.dtypes == {"float32", "bfloat16"}


def exported(module, arguments, opset):
    torch = pytest.importorskip("torch", reason="real models are exported by torch")
    file = io.BytesIO()
    names = [f"x{i}" for i in range(len(arguments))]
    with torch.no_grad():
        torch.onnx.export(module.eval(), arguments, file, opset_version=opset, dynamo=False, input_names=names)
    return file.getvalue(), dict(zip(names, (a.numpy() for a in arguments)))


def bert(torch):
    transformers = pytest.importorskip("transformers", reason="BERT is of transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=100, **sizes)
    own = transformers.BertModel._from_config(config, attn_implementation="eager")

    class Bert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = own

        def forward(self, ids, mask):
            return self.own(input_ids=ids, attention_mask=mask)[0]

    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    return Bert(), (torch.randint(0, 100, (2, 12)), mask)


def vit(torch):
    timm = pytest.importorskip("timm", reason="ViT is of timm")
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10)
    return own, (torch.randn(2, 3, 32, 32),)


def lraspp(torch):
    models = pytest.importorskip("torchvision", reason="LR-ASPP is of torchvision").models
    own = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)

    class Segmentation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = own

        def forward(self, x):
            return self.own(x)["out"]

    return Segmentation(), (torch.randn(1, 3, 32, 32),)


def lstm(torch):
    class Lstm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.end = torch.nn.LSTM(4, 8, bidirectional=True), torch.nn.Linear(16, 3)

        def forward(self, x):
            return self.end(self.cells(x)[0])

    return Lstm(), (torch.randn(5, 2, 4),)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("made_by", [bert, vit, lraspp, lstm])
def test_real_models_answer_as_before_and_are_taken_by_the_parser(made_by, opset, tmp_path):
    torch = pytest.importorskip("torch", reason="real models are exported by torch")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    torch.manual_seed(0)
    source, inputs = exported(*made_by(torch), opset)
    own = plain(read(source))
    wanted = answers(own, tmp_path, **inputs)[0]
    for precision, dtype, most in (("fp16", "HALF", 3e-3), ("bf16", "BF16", 3e-2), ("fp32", "FLOAT", 1e-5)):
        made = cast(own, precision)
        assert made.kept == ()
        if precision != "bf16":  # which those opsets have in few operators
            checked(made.model)
        assert relative(answers(made.model, tmp_path, True, **inputs)[0], wanted) < most
        products = {d for _, kind, d in network(made.model, tmp_path) if kind in ("MATRIX_MULTIPLY", "CONVOLUTION")}
        assert products == {dtype}


def test_a_gru_which_the_parser_takes_in_float32_alone_is_no_reason_to_refuse_the_rest():
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    own = model(
        "g (float[T, N, 4] x) => (float[T, 1, N, 5] y) { a = MatMul (x, v)  g = GRU <hidden_size = 2> (a, w, r) "
        "y = MatMul (g, u) }", v=rows(4, 4), w=rows(1, 6, 4), r=rows(1, 6, 2), u=rows(2, 5))  # fmt: skip
    plan = mlflow_trt.convert(
        own.proto, dims={"N": (1, 2, 4), "T": (1, 3, 8)}, precision="bf16", compute_capabilities=["8.9"]
    )
    assert {"bfloat16", "float32"} <= set(plan.record.precision.census.layers)


def test_an_int64_stays_one():
    own = model(
        "g (int64[N, 2] i) => (float[N, 2, 4] y, int64[N, 2] j) { y = Gather (w, i)  j = Neg (i) }", w=rows(9, 4)
    )
    made = cast(own, "fp16")
    assert made.dtypes == {"int64", "float16", "float32"}
    assert operators(made.model).count("Cast") == 1
    assert numpy_helper.to_array(made.model.proto.graph.initializer[0]).dtype == np.float16
