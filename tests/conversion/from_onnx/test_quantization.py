"""Quantized graphs, as ONNX Runtime's own tool makes them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime.quantization", reason="needs what onnxruntime.quantization imports")

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import mlflow_trt
from mlflow_trt.conversion.from_onnx import quantization
from mlflow_trt.conversion.from_onnx.model import OnnxModel, read
from mlflow_trt.conversion.from_onnx.precision import cast
from mlflow_trt.errors import ConversionError, UnsupportedOperatorError

from .written import answers, model, network, operators, relative, rows

SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
QDQ = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}


class Rows(CalibrationDataReader):
    def __init__(self, x):
        self.rows = iter([{"x": x}])

    def get_next(self):
        return next(self.rows, None)


def mlp():
    return model(
        "g (float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, first, bias)  b = Relu (a)  y = Gemm (b, second, end) }",
        first=rows(8, 16),
        bias=rows(16),
        second=rows(16, 4),
        end=rows(4),
    )


def cnn():
    return model(
        "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }",
        w=rows(4, 3, 3, 3),
        b=rows(4),
    )


def quantized(own: OnnxModel, x, folder, **options) -> OnnxModel:
    onnx.save(own.proto, folder / "own.onnx")
    quantize_static(folder / "own.onnx", folder / "quantized.onnx", Rows(x), **{**QDQ, **options})
    return read(folder / "quantized.onnx")


def test_a_graph_that_is_not_quantized_stays_itself():
    own = mlp()
    assert quantization.prepared(own) is own


@pytest.mark.parametrize("per_channel", [False, True])
def test_biases_become_what_they_stand_for(per_channel, tmp_path):
    x = rows(16, 8)
    own = quantized(mlp(), x, tmp_path, per_channel=per_channel, extra_options=SYMMETRIC)
    made = quantization.prepared(own)
    assert operators(own).count("DequantizeLinear") - operators(made).count("DequantizeLinear") == 2
    assert operators(made).count("QuantizeLinear") == operators(own).count("QuantizeLinear")
    np.testing.assert_allclose(answers(made, tmp_path, x=x)[0], answers(own, tmp_path, x=x)[0], atol=1e-6)


@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_int8_goes_into_the_network(precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    x = rows(16, 8)
    own = quantized(mlp(), x, tmp_path, extra_options=SYMMETRIC)
    made = cast(quantization.prepared(own), precision)
    assert "int8" in made.dtypes
    assert made.kept == ()
    layers = network(made.model, tmp_path)
    wanted = {None: "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    for searched in ("DEQUANTIZE", "MATRIX_MULTIPLY"):
        assert {dtype for _, kind, dtype in layers if kind == searched} == {wanted}
    assert relative(answers(made.model, tmp_path, widened=True, x=x)[0], answers(own, tmp_path, x=x)[0]) < 0.03


def test_a_quantized_graph_becomes_a_plan(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    own = quantized(mlp(), rows(16, 8), tmp_path, extra_options=SYMMETRIC)
    plan = mlflow_trt.convert(own.proto, dims={"N": (1, 4, 16)}, precision="fp16", compute_capabilities=["8.9"])
    assert {"int8", "float16"} <= set(plan.record.precision.census.layers)


def test_scales_that_half_precision_has_not_stay_in_float32(tmp_path):
    body = "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (d, w)"
    own = model(f"g (float[N, 8] x) => (float[N, 4] y) {{ {body} }}", s=np.float32(1e-6), z=np.int8(0), w=rows(8, 4))
    made = cast(own, "fp16").model
    x = 1e-4 * rows(2, 8)
    assert relative(answers(made, tmp_path, widened=True, x=x)[0], answers(own, tmp_path, x=x)[0]) < 1e-3
    (product,) = (node for node in made.proto.graph.node if node.op_type == "MatMul")
    assert made.proto.graph.node[-1].op_type == "Cast"
    assert product.input[0].endswith(".fp16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation_type": QuantType.QUInt8, "extra_options": SYMMETRIC}, "quantized to uint8"),
        ({}, "zero points other than 0"),
        ({"activation_type": QuantType.QInt16, "extra_options": SYMMETRIC}, "quantized to int16"),
    ],
)
def test_what_tensorrt_has_not(options, words, tmp_path):
    own = quantized(mlp(), rows(16, 8) + 1, tmp_path, **options)
    with pytest.raises(ConversionError, match=f"{words}.*Linear at .* and .* more") as caught:
        quantization.prepared(own)
    assert "ActivationSymmetric" in caught.value.remedy


def test_graphs_that_compute_in_integers(tmp_path):
    own = quantized(cnn(), rows(2, 3, 8, 8), tmp_path, quant_format=QuantFormat.QOperator)
    with pytest.raises(UnsupportedOperatorError, match="computes in integers: QLinearConv") as caught:
        quantization.prepared(own)
    assert caught.value.operators == ("onnx.QLinearConv",)
    quantize_dynamic(tmp_path / "own.onnx", tmp_path / "dynamic.onnx")
    with pytest.raises(UnsupportedOperatorError, match="DynamicQuantizeLinear"):
        quantization.prepared(read(tmp_path / "dynamic.onnx"))


def test_convolutions_in_int8_are_told(tmp_path):
    own = quantization.prepared(quantized(cnn(), rows(2, 3, 8, 8), tmp_path, extra_options=SYMMETRIC))
    made = cast(own, "fp16").model
    assert len(quantization.int8_convolutions(made)) == 1
    with pytest.raises(ConversionError, match="1 convolution of INT8"):
        quantization.check_int8_convolutions(made)
    quantization.check_int8_convolutions(cnn())


BETWEEN = {
    "data alone": ("c = Conv (d, whole)", False),
    "weights alone": ("c = Conv (x, w)", False),
    "both": ("c = Conv (d, w)", True),
    "transposed": ("t = Transpose <perm = [0, 1, 3, 2]> (d)  c = Conv (t, w)", True),
    "pooled": ("t = MaxPool <kernel_shape = [1, 1]> (d)  c = Conv (t, w)", True),
    "computed with": ("t = Relu (d)  c = Conv (t, w)", False),
}


@pytest.mark.parametrize(("body", "found"), BETWEEN.values(), ids=BETWEEN)
def test_what_is_told_is_what_is_not_built(body, found, tmp_path):
    """By the real builder."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    quantizers = "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  w = DequantizeLinear (small, s, z)"
    own = model(
        f"g (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) {{ {quantizers}  {body}  y = Identity (c) }}",
        s=np.float32(0.02),
        z=np.int8(0),
        small=np.round(30 * rows(4, 4, 1, 1)).astype(np.int8),
        whole=rows(4, 4, 1, 1),
    )
    made = cast(own, "fp16").model
    assert bool(quantization.int8_convolutions(made)) is found
    assert _builds(trt, made, tmp_path) is not found


def _builds(trt, made, folder):
    from mlflow_trt.conversion.from_onnx.model import write

    from .written import _logger

    logger = _logger(trt)
    builder = trt.Builder(logger)
    net = builder.create_network(0)
    parser = trt.OnnxParser(net, logger)
    assert parser.parse_from_file(str(write(made, folder)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(net, config) is not None
