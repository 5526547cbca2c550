"""The protocol's datatypes: the table, and one tensor at a time as raw data and as JSON values, both ways."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.plan.casts import from_bfloat16, to_bfloat16
from mlflow_trt.serving.protocol.datatypes import (
    DATATYPES,
    NAMES,
    OF_BINDINGS,
    ProtocolError,
    check_datatype,
    check_shape,
    elements_of,
    from_json,
    from_raw,
    show,
    to_json,
    to_raw,
)

SIZES = {
    **{"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8},
    **{"FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2},
}
"""Bytes of an element, as the protocol's document has them."""
NUMBERS = {datatype: dtype for datatype, dtype in DATATYPES.items() if dtype.kind in "iu" and datatype != "BF16"}


# --- the table ---


def test_the_protocol_s_datatypes_are_known_by_their_names_and_sizes():
    assert {*DATATYPES} == {*SIZES, "BYTES"}
    assert {datatype: DATATYPES[datatype].itemsize for datatype in SIZES} == SIZES
    assert all(dtype.byteorder in "<|=" for dtype in DATATYPES.values())


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [("float32", "FP32"), ("float16", "FP16"), ("bool", "BOOL"), ("int64", "INT64"), ("uint8", "UINT8")],
)
def test_a_dtype_of_the_interface_and_what_callers_see(dtype, datatype):
    assert NAMES[dtype] == OF_BINDINGS[dtype] == datatype


def test_bfloat16_is_only_a_binding_s():
    assert OF_BINDINGS["bfloat16"] == "BF16"
    assert "bfloat16" not in NAMES


# --- what a client says ---


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x", "'x'"),
        ("x" * 60, "'" + "x" * 60 + "'"),
        ("x" * 61, "'" + "x" * 59 + "…"),
        ("a\n\x1b", r"'a\n\x1b'"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (float("nan"), "NaN"),
        ([1, 2], "an array"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_client_s_value_in_a_message(value, shown):
    assert show(value) == shown


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_whatever_it_is_it_is_short_and_on_one_line(value):
    shown = show(value)
    assert len(shown) <= 62
    assert shown.isprintable()


@pytest.mark.parametrize("shape", [[], [0], [1, 2, 3], [1] * 32, [2**40], [2**20, 2**20]])
def test_shapes(shape):
    assert check_shape("x", shape) == tuple(shape)


@pytest.mark.parametrize(
    "shape", [None, 2, "2", (2,), {}, [None], ["2"], [2.0], [True], [-1], [[2]], [1] * 33, [2**40 + 1], [0, 2**41]]
)
def test_no_shapes(shape):
    with pytest.raises(ProtocolError, match=r"^Input 'x' has "):
        check_shape("x", shape)


def test_of_a_long_shape_the_first_sizes_are_shown():
    with pytest.raises(ProtocolError, match=r"the shape \[0, 1, 2, 3, 4, 5, 6, 7, …\]"):
        check_shape("x", [*range(20), -1])
    with pytest.raises(ProtocolError, match=r"the shape \[0, 1, 2, 3, 4, 5, 6, -1\]\."):
        check_shape("x", [*range(7), -1])


@pytest.mark.parametrize("datatype", [None, 1, [], "fp32", "FP8", "FP32 ", ""])
def test_no_datatypes(datatype):
    with pytest.raises(ProtocolError, match="has the datatype"):
        check_datatype("x", datatype)


# --- raw data ---


@pytest.mark.parametrize("datatype", SIZES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_raw_data_has_just_the_size_of_its_shape(datatype, shape):
    size = math.prod(shape) * SIZES[datatype]
    assert from_raw("x", datatype, shape, bytes(size)).shape == shape
    for wrong in {size - 1, size + 1, 2 * size + 1} - {-1}:
        with pytest.raises(ProtocolError, match=rf"has {wrong} bytes of binary data\.\n.*{size}: {datatype}"):
            from_raw("x", datatype, shape, bytes(wrong))


@pytest.mark.parametrize("datatype", NUMBERS)
def test_raw_data_is_little_endian_on_both_ways(datatype):
    data = bytes(range(1, SIZES[datatype] + 1))
    array = from_raw("x", datatype, (1,), data)
    assert int(array[0]) == int.from_bytes(data, "little")
    assert bytes(to_raw(array, datatype)) == data
    assert bytes(to_raw(array.astype(array.dtype.newbyteorder(">")), datatype)) == data


def test_raw_data_of_a_contiguous_array_is_not_copied():
    array = np.arange(6, dtype="<f4")
    assert np.shares_memory(np.frombuffer(to_raw(array, "FP32"), np.uint8), array)


def test_raw_data_is_row_major():
    array = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert np.frombuffer(to_raw(array, "INT16"), "<i2").tolist() == [0, 3, 1, 4, 2, 5]


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_objects_have_their_lengths_before_them(items):
    array = np.empty(len(items), object)
    array[:] = items
    data = to_raw(array, "BYTES")
    assert len(data) == sum(4 + len(item) for item in items)
    assert from_raw("x", "BYTES", (len(items),), data).tolist() == items


@given(st.binary(max_size=40), st.integers(0, 5))
def test_whatever_is_said_to_be_bytes_objects_is_just_these_or_refused(data, count):
    try:
        array = from_raw("x", "BYTES", (count,), data)
    except ProtocolError:
        return
    assert to_raw(array, "BYTES") == data


# --- JSON ---


@pytest.mark.parametrize("datatype", NUMBERS)
def test_integers_up_to_their_ends_and_no_further(datatype):
    info = np.iinfo(NUMBERS[datatype])
    ends = [int(info.min), int(info.max)]
    assert from_json("x", datatype, (2,), ends).tolist() == ends
    for beyond in (ends[0] - 1, ends[1] + 1):
        with pytest.raises(ProtocolError, match=f"holds a number that {datatype} can't hold"):
            from_json("x", datatype, (2,), [0, beyond])


@pytest.mark.parametrize(
    ("datatype", "largest", "beyond"),
    [("FP16", 65504.0, 65520.0), ("FP32", 3.4028234663852886e38, 3.5e38), ("BF16", 3.3895313892515355e38, 3.4e38)],
)
def test_floats_up_to_their_ends_and_no_further(datatype, largest, beyond):
    assert from_json("x", datatype, (2,), [largest, -largest]).tolist() == [largest, -largest]
    for value in (beyond, -beyond, 10**400):
        with pytest.raises(ProtocolError, match=f"{datatype} can't hold"):
            from_json("x", datatype, (1,), [value])


def test_a_bfloat16_in_json_is_one():
    array = from_json("x", "BF16", (3,), [1, 1.003, 1e-40])
    assert array.dtype == np.float32
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(array)), array)
    assert array[1] == 1


@given(st.floats(width=32))
def test_numbers_that_json_has_not_are_the_strings_that_numpy_reads(value):
    array = np.array([value, 1], np.float32)
    text = json.dumps(to_json("y", array, "FP32"), allow_nan=False)
    np.testing.assert_array_equal(np.array(json.loads(text), np.float32), array)


@pytest.mark.parametrize("array", [np.zeros((0, 2), np.float32), np.array(3, np.int64), np.ones((2, 2), bool)])
def test_elements_are_python_s_own_and_row_major(array):
    values = elements_of(array)
    assert values == array.ravel().tolist()
    assert all(type(value) in (float, int, bool) for value in values)


def test_text_and_what_is_none():
    words = np.array([b"a", "é".encode()], object)
    assert to_json("y", words, "BYTES") == ["a", "é"]
    with pytest.raises(ProtocolError, match="'y' holds bytes that are not UTF-8"):
        to_json("y", np.array([b"\xff"], object), "BYTES")
