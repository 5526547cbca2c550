"""Malformed requests: each is refused in words, at once, whatever sizes it makes up."""

from __future__ import annotations

import json
import re
import tracemalloc

import pytest

from mlflow_trt.serving.protocol import json_body
from mlflow_trt.serving.protocol.datatypes import show
from mlflow_trt.serving.protocol.json_body import ProtocolError, decode

from .bodies import EIGHT, body, entry, raw_entry, with_raw

BAD = {
    "empty": ((b"", None), "not a JSON object: Expecting value, at character 0", "a JSON object"),
    "cut": ((body(entry())[:-1], None), "Expecting ',' delimiter", "a JSON object"),
    "no UTF-8": ((b'{"id": "\xff"}', None), "not UTF-8", "a JSON object"),
    "UTF-16": ((body(entry()).decode().encode("utf-16"), None), "not UTF-8", "a JSON object"),
    "an array": ((b"[]", None), "it is an array", "a JSON object"),
    "a number": ((b"7", None), "it is 7", "a JSON object"),
    "two objects": ((b"{}{}", None), "Extra data", "a JSON object"),
    "deep": ((b"[" * 100_000, None), "nested too deep", "a JSON object"),
    "deep data": ((b'{"inputs":' + b"[" * 100_000, None), "nested too deep", "a JSON object"),
    "huge integer": ((b'{"id":' + b"9" * 5000 + b"}", None), "too many digits", "a JSON object"),
    "key twice": ((b'{"id": "a", "id": "b"}', None), "The key 'id' is there twice", "each one once"),
    "key twice, inside": ((b'{"inputs": [{"name": "x", "name": "y"}]}', None), "The key 'name'", "each one once"),
    "NaN": ((body(entry(data=[1, float("nan")])), None), "holds NaN", "numbers"),
    "Infinity": ((body(entry(data=[1, float("inf")])), None), "holds Infinity", "numbers"),
    "-Infinity": ((body(entry(data=[1, float("-inf")])), None), "holds -Infinity", "numbers"),
    "header of 0 bytes": ((body(entry()), 0), "is 0 and the body has", "1 to the length of the body"),
    "header of -1 bytes": ((body(entry()), -1), "is -1 and the body has", "1 to the length of the body"),
    "header beyond the body": ((body(entry()), 10_000), "is 10000 and the body has", "1 to the length"),
    "header too short": (with_raw(EIGHT, raw_entry(8), length=-1), "Expecting ',' delimiter", "tells its length"),
    "header too long": (with_raw(EIGHT, raw_entry(8), length=1), "Extra data", "tells its length"),
    "binary without the header": (
        (body(raw_entry(8)), None),
        "8 bytes of binary data, and the body is all JSON",
        "Inf",
    ),
    "id": ((body(entry(), id=7), None), "id is 7", "a string"),
    "id with half a surrogate pair": ((body(entry(), id="\ud800"), None), r"id is '\\ud800'", "UTF-8"),
    "no inputs": ((b"{}", None), "has no inputs", "an array"),
    "inputs as an object": ((b'{"inputs": {"x": []}}', None), "inputs that are no array", "an array"),
    "inputs of numbers": ((b'{"inputs": [1]}', None), "inputs that are no array of objects", "an array"),
    "no name": ((body({"shape": [1]}), None), "name is null", "a string"),
    "name as a number": ((body(entry(name=5)), None), "name is 5", "a string"),
    "name with half a surrogate pair": ((body(entry(name="\udfff")), None), "name is", "UTF-8"),
    "input twice": ((body(entry(), entry()), None), "Input 'x' is there twice", "each one once"),
    "no datatype": ((body({"name": "x", "shape": [1]}), None), "the datatype null", "FP32"),
    "unknown datatype": ((body(entry(datatype="FP8")), None), "the datatype 'FP8'", "BF16"),
    "datatype in lower case": ((body(entry(datatype="fp32")), None), "the datatype 'fp32'", "FP32"),
    "datatype as an array": ((body(entry(datatype=["FP32"])), None), "the datatype an array", "FP32"),
    "no shape": ((body({"name": "x", "datatype": "FP32"}), None), "the shape null", "integers"),
    "shape as a number": ((body(entry(shape=2)), None), "the shape 2", "integers"),
    "negative size": ((body(entry(shape=[-1])), None), r"the shape \[-1\]", "none below 0"),
    "size as a fraction": ((body(entry(shape=[2.0])), None), r"the shape \[2.0\]", "integers"),
    "size as text": ((body(entry(shape=["2"])), None), r"the shape \['2'\]", "integers"),
    "size as true": ((body(entry(shape=[True, 2])), None), r"the shape \[true, 2\]", "integers"),
    "nested shape": ((body(entry(shape=[[2]])), None), r"the shape \[an array\]", "integers"),
    "rank 33": ((body(entry(shape=[1] * 33, data=[1])), None), "33 dimensions", "32 dimensions"),
    "huge": ((body(entry(shape=[2**62])), None), "too large", "elements"),
    "huge beyond 64 bits": ((body(entry(shape=[10**30, 10**30])), None), "too large", "elements"),
    "huge and empty": ((body(entry(shape=[0, 2**62, 2**62], data=[])), None), "too large", "elements"),
    "large": ((body(entry(shape=[2**38])), None), "2 elements in its data", "274877906944 elements"),
    "no data": ((body({"name": "x", "shape": [1], "datatype": "FP32"}), None), "has no data", "an array"),
    "data as a number": ((body(entry(shape=[], data=1)), None), "has 1 as its data", "an array"),
    "data as text": ((body(entry(data="ab")), None), "has 'ab' as its data", "an array"),
    "too few": ((body(entry(shape=[3])), None), "2 elements in its data", "3 elements"),
    "too many": ((body(entry(shape=[1])), None), "2 elements in its data", "1 elements"),
    "data without rank": ((body(entry(shape=[], data=[[1]])), None), "nested otherwise", "1 elements"),
    "ragged": ((body(entry(shape=[2, 2], data=[[1], [1, 2]])), None), "nested otherwise", r"\[2, 2\]"),
    "ragged, same count": ((body(entry(shape=[2, 2], data=[[1], [1, 2, 3]])), None), "nested otherwise", r"\[2, 2\]"),
    "half nested": ((body(entry(shape=[2, 2], data=[[1, 2], 3, 4])), None), "nested otherwise", r"\[2, 2\]"),
    "half nested, same length": ((body(entry(shape=[2, 2], data=[[1, 2], 3])), None), "nested otherwise", r"\[2, 2\]"),
    "nested, more empty rows": ((body(entry(shape=[2, 0], data=[[], [], []])), None), "nested otherwise", r"\[2, 0\]"),
    "nested, transposed": ((body(entry(shape=[2, 3], data=[[1, 2]] * 3)), None), "nested otherwise", r"\[2, 3\]"),
    "nested deeper": ((body(entry(shape=[1, 2], data=[[[1], [2]]])), None), "holds an array", "numbers"),
    "flat with an array": ((body(entry(data=[1, [2]])), None), "holds an array", "numbers"),
    "text for numbers": ((body(entry(data=["1", "2"])), None), "FP32 and holds '1'", "numbers"),
    "null for a number": ((body(entry(data=[1, None])), None), "FP32 and holds null", "numbers"),
    "true for a number": ((body(entry(data=[1, True])), None), "FP32 and holds true", "numbers"),
    "numbers for BOOL": ((body(entry(datatype="BOOL")), None), "BOOL and holds 1", "true and false"),
    "fraction for INT32": ((body(entry(datatype="INT32", data=[1, 2.0])), None), "holds 2.0", "integers"),
    "true for INT32": ((body(entry(datatype="INT32", data=[1, True])), None), "holds true", "integers"),
    "number for BYTES": ((body(entry(datatype="BYTES")), None), "BYTES and holds 1", "strings"),
    "surrogate in BYTES": ((body(entry(datatype="BYTES", data=["a", "\ud800"])), None), "surrogate pair", "UTF-8"),
    "256 for UINT8": ((body(entry(datatype="UINT8", data=[0, 256])), None), "that UINT8 can't hold", "range of UINT8"),
    "-1 for UINT64": ((body(entry(datatype="UINT64", data=[0, -1])), None), "that UINT64 can't hold", "range"),
    "2**63 for INT64": ((body(entry(datatype="INT64", data=[0, 2**63])), None), "that INT64 can't hold", "range"),
    "1e39 for FP32": ((body(entry(data=[0, 1e39])), None), "that FP32 can't hold", "range"),
    "65520 for FP16": ((body(entry(datatype="FP16", data=[0, 65520])), None), "that FP16 can't hold", "range"),
    "3.4e38 for BF16": ((body(entry(datatype="BF16", data=[0, 3.4e38])), None), "that BF16 can't hold", "range"),
    "1e999": ((body(entry(datatype="FP64")).replace(b"[1, 2]", b"[1e999, 2]"), None), "FP64 can't hold", "range"),
    "10**400 for FP64": ((body(entry(datatype="FP64", data=[0, 10**400])), None), "FP64 can't hold", "range"),
    "binary, too few": (with_raw(EIGHT, raw_entry(8, shape=[3])), "has 8 bytes of binary data", "12: FP32 of shape"),
    "binary, too many": (with_raw(EIGHT, raw_entry(8, shape=[1])), "has 8 bytes of binary data", "4: FP32 of shape"),
    "binary, none left": (with_raw(EIGHT, raw_entry(8), raw_entry(8, name="y")), "8 bytes .*, and 0 are left", "all"),
    "binary, broken off": (with_raw(EIGHT[:-1], raw_entry(8)), "8 bytes of binary data, and 7 are left", "all"),
    "binary, huge": (with_raw(EIGHT, raw_entry(2**70)), "and 8 are left", "all"),
    "binary, below 0": (with_raw(EIGHT, raw_entry(-8)), "the binary_data_size -8", "a number of bytes"),
    "binary, as text": (with_raw(EIGHT, raw_entry("8")), "the binary_data_size '8'", "a number of bytes"),
    "binary, as true": (with_raw(b"\0", raw_entry(True, datatype="INT8")), "binary_data_size true", "a number"),
    "binary and JSON": (with_raw(EIGHT, {**entry(), **raw_entry(8)}), "has data and binary_data_size", "no data"),
    "trailing bytes": (with_raw(EIGHT + b"\0", raw_entry(8)), "1 bytes behind the last input", "nothing"),
    "trailing bytes behind JSON": (with_raw(b"\0", entry()), "1 bytes behind the last input", "nothing"),
    "BOOL of 2": (with_raw(b"\1\2", raw_entry(2, datatype="BOOL")), "bytes above 1", "0 or 1"),
    "BYTES, count": (with_raw(b"\0\0\0\0", raw_entry(4, datatype="BYTES")), "are not 2 elements", "four bytes"),
    "BYTES, more": (with_raw(b"\0" * 12, raw_entry(12, datatype="BYTES")), "are not 2 elements", "nothing more"),
    "BYTES, long": (with_raw(b"\xff" * 8, raw_entry(8, datatype="BYTES")), "are not 2 elements", "its length"),
    "BYTES, half a length": (with_raw(b"\0" * 7, raw_entry(7, datatype="BYTES")), "are not 2 elements", "its length"),
    "BYTES, huge": (with_raw(EIGHT, raw_entry(8, datatype="BYTES", shape=[2**40])), "are not 1099511627776", "its"),
    "parameters as an array": (
        (body(entry(), parameters=[]), None),
        "The request has an array as its par",
        "an object",
    ),
    "input's parameters as text": ((body(entry(parameters="a")), None), "Input 'x' has 'a' as its par", "an object"),
    "binary_data_output as text": (
        (body(entry(), parameters={"binary_data_output": "yes"}), None),
        "binary_data_output is 'yes'",
        "true or false",
    ),
    "timeout below 0": ((body(entry(), parameters={"timeout": -1}), None), "timeout is -1", "microseconds"),
    "timeout as a fraction": ((body(entry(), parameters={"timeout": 1.5}), None), "timeout is 1.5", "microseconds"),
    "timeout as false": ((body(entry(), parameters={"timeout": False}), None), "timeout is false", "microseconds"),
    "sequence": ((body(entry(), parameters={"sequence_id": 5}), None), "part of a sequence", "no state is kept"),
    "sequence by name": ((body(entry(), parameters={"sequence_id": "a"}), None), "part of a sequence", "no state"),
    "sequence's start": ((body(entry(), parameters={"sequence_start": True}), None), "part of a sequence", "no state"),
    "input in shared memory": (
        (body(entry(parameters={"shared_memory_region": "r"})), None),
        "Input 'x' is to be in shared memory",
        "in the body",
    ),
    "output in shared memory": (
        (body(entry(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]), None),
        "Output 'y' is to be in shared memory",
        "in the body",
    ),
    "classification": (
        (body(entry(), outputs=[{"name": "y", "parameters": {"classification": 3}}]), None),
        "Output 'y' is asked for as a classification",
        "outputs as they are",
    ),
    "outputs as an object": ((body(entry(), outputs={"y": 1}), None), "outputs that are no array", "an array"),
    "outputs as false": ((body(entry(), outputs=False), None), "outputs that are no array", "an array"),
    "outputs as names": ((body(entry(), outputs=["y"]), None), "outputs that are no array of objects", "an array"),
    "output twice": ((body(entry(), outputs=[{"name": "y"}] * 2), None), "Output 'y' is there twice", "once"),
    "output without a name": ((body(entry(), outputs=[{}]), None), "output's name is null", "a string"),
    "binary_data as a number": (
        (body(entry(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), None),
        "binary_data is 1",
        "true or false",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(case):
    (data, length), found, expected = BAD[case]
    with pytest.raises(ProtocolError) as caught:
        decode(data, length)
    assert re.search(found, caught.value.found), caught.value.found
    assert re.search(expected, caught.value.expected), caught.value.expected
    assert caught.value.remedy
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("case", [c for c in BAD if c.startswith(("huge", "large", "binary, huge", "BYTES"))])
def test_sizes_that_a_client_makes_up_take_no_memory(case):
    (data, length), *_ = BAD[case]
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(data, length)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)
def test_the_time_for_a_refusal_grows_with_the_body_and_no_faster():
    many = ", ".join(f'"{n}": 0' for n in range(300_000))
    for text in (f'{{{many}, "299999": 1}}', '{"inputs": [' + ", ".join(["{}"] * 300_000) + "]}"):
        with pytest.raises(ProtocolError):
            decode(text.encode(), None)


def test_messages_show_clients_values_short_and_harmless():
    evil = "\x1b[31m\n2024-01-01 ERROR forged\u202e" + "a" * 1_000_000
    with pytest.raises(ProtocolError) as caught:
        decode(body(entry(name=evil, datatype=evil)), None)
    first, *_ = str(caught.value).splitlines()
    assert r"Input '\x1b[31m\n2024" in first
    assert r"\u202e" in first
    assert first.isprintable()
    assert len(str(caught.value)) < 600
    assert show(10**400) == "1" + "0" * 59 + "…"


def test_error_bodies_are_json_whatever_the_message():
    text = json_body.error_body('quote " newline \n escape \x1b é \ud800')
    assert json.loads(text)["error"] == 'quote " newline \n escape \x1b é \ud800'
    assert text.isascii()
    assert text.decode().isprintable()
