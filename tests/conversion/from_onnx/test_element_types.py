"""Names and sizes of dtypes."""

from __future__ import annotations

import pytest
from onnx import TensorProto, ValueInfoProto

from mlflow_trt.conversion.from_onnx.element_types import bits, entries, kind_of, name_of, size

from .made import FLOAT, STRING, value


@pytest.mark.parametrize(
    ("dtype", "name", "width", "entry_count"),
    [
        ("FLOAT", "float32", 32, 3),
        ("DOUBLE", "float64", 64, 3),
        ("FLOAT16", "float16", 16, 3),
        ("BFLOAT16", "bfloat16", 16, 3),
        ("FLOAT8E4M3FN", "float8", 8, 3),
        ("BOOL", "bool", 8, 3),
        ("INT64", "int64", 64, 3),
        ("UINT4", "uint4", 4, 2),
        ("COMPLEX64", "complex64", 64, 6),
    ],
)
def test_a_dtype(dtype, name, width, entry_count):
    number = getattr(TensorProto, dtype)
    tensor = TensorProto(data_type=number, dims=[1, 3])
    assert (name_of(number), bits(number), size(tensor), entries(tensor)) == (
        name,
        width,
        -(-3 * width // 8),
        entry_count,
    )


def test_what_is_none():
    assert name_of(0) is name_of(99) is None
    assert bits(STRING) == 0


def test_a_value_is_of_a_dtype_or_of_another_kind():
    assert kind_of(value("x")) == "float32"
    assert kind_of(value("x", dtype=STRING)) == "string"
    assert kind_of(value("x", dtype=99)) == "of an unknown dtype"
    assert kind_of(ValueInfoProto(name="x")) == "of an unknown type"
    sparse = ValueInfoProto(name="x")
    sparse.type.sparse_tensor_type.elem_type = FLOAT
    assert kind_of(sparse) == "a sparse tensor"
