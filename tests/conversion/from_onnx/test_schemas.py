"""What ONNX's schemas say of dtypes."""

from __future__ import annotations

from onnx import TensorProto

from mlflow_trt.conversion.from_onnx.schemas import number, schema


def test_operands_and_their_variables():
    resize = schema("Resize", 18)
    assert [resize.operand(place) for place in range(4)] == ["T1", "T2", "tensor(float)", "tensor(int64)"]
    assert schema("Concat", 13).operand(7) == "T", "the last one stands for any number"
    assert schema("TopK", 11).result(1) == "I"


def test_dtypes_that_an_operator_takes():
    convolution = schema("Conv", 11)
    assert convolution.takes(0, TensorProto.BFLOAT16), "later opsets have it"
    assert not convolution.takes(0, TensorProto.INT64)
    assert not schema("NonMaxSuppression", 11).takes(0, TensorProto.FLOAT16)


def test_operators_that_an_opset_has_not():
    assert schema("Gelu", 11) is None
    assert schema("Mine", 18) is None
    assert schema("Upsample", 9).operand(1) == "tensor(float)", "that newer ones have no more"


def test_names_of_dtypes():
    assert number("tensor(bfloat16)") == TensorProto.BFLOAT16
    assert number("seq(tensor(float))") is None
