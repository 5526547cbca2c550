"""A graph that was cast and answers otherwise is refused; rounding is no other answer."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from mlflow_trt.conversion.from_onnx import agreement, golden, inputs, precision, values
from mlflow_trt.conversion.from_onnx.model import read, write
from mlflow_trt.errors import ConverterError

from .networks import convolutional, perceptron


def asked(folder, proto, **dims):
    one = read(proto)
    path = write(one, folder)
    return golden.compute(path, inputs.describe(one, dims=dims), values.roles(one.proto)), one


@pytest.mark.parametrize("wanted", [None, "fp32", "fp16", "bf16"])
def test_rounding_is_no_other_answer(tmp_path, wanted):
    tensors, one = asked(tmp_path, convolutional(), N=(1, 2, 4))
    cast = precision.cast(one, wanted)
    agreement.check(write(cast.model, tmp_path), tensors, wanted)


@pytest.mark.parametrize("wanted", [None, "fp16", "bf16"])
def test_another_answer_is_refused(tmp_path, wanted):
    tensors, one = asked(tmp_path, perceptron(), batch=(1, 2, 4))
    cast = precision.cast(one, wanted).model
    next(node for node in cast.proto.graph.node if node.op_type == "Relu").op_type = "Abs"
    with pytest.raises(ConverterError, match=r"answers otherwise than the original at \w+ of profile 0: y: rel L2"):
        agreement.check(write(cast, tmp_path), tensors, wanted)


def test_a_graph_that_is_not_valid_or_fails_is_refused(tmp_path):
    tensors, one = asked(tmp_path, perceptron(), batch=(1, 2, 4))
    one.proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(ConverterError, match=r"(fails at|is not valid)"):
        agreement.check(write(one, tmp_path), tensors, None)
