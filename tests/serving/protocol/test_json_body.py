"""Requests in JSON and in binary to arrays, and arrays to answers; against NVIDIA's own client."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflow_trt.serving.protocol import json_body
from mlflow_trt.serving.protocol.datatypes import DATATYPES, NAMES
from mlflow_trt.serving.protocol.inference_request import RequestedOutput
from mlflow_trt.serving.protocol.json_body import ProtocolError, decode, encode

from .bodies import (
    answered,
    asking,
    body,
    client_input,
    client_request,
    client_result,
    entry,
    interface,
    raw_entry,
    received,
    same,
    tensor,
    with_raw,
)

SAMPLES = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    **{
        datatype: np.array([[np.iinfo(dtype).min, 0, 1], [2, 3, np.iinfo(dtype).max]], dtype)
        for datatype, dtype in DATATYPES.items()
        if dtype.kind in "iu" and datatype != "BF16"
    },
    "FP16": np.array([[0.1, -0.0, 65504], [1e-7, 2, 3]], np.float16),
    "FP32": np.array([[0.1, -0.0, 3.4e38], [1e-45, 2, 3]], np.float32),
    "FP64": np.array([[0.1, -0.0, 1.7e308], [5e-324, 2, 3]], np.float64),
    "BF16": np.array([[0.1, -0.0, 3e38], [1e-38, 2, 3]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"a", b"", b"tail\0"], ["é".encode(), b'"\\\n', b"x" * 300]], object),
}
"""Of every datatype, among them its extremes."""


def seen(array):
    """How ``decode`` gives an array that a client sent: it has no bfloat16."""
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


# NVIDIA's client


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_input_of_tritonclient(datatype):
    data, length = client_request([client_input("x", SAMPLES[datatype], datatype)])
    request = decode(data, length)
    same(request.inputs["x"], seen(SAMPLES[datatype]))
    assert request.datatypes == {"x": datatype}
    assert (request.id, request.outputs, request.binary, request.timeout) == ("", None, True, None)


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BF16"])  # the client sends that as binary only
def test_json_input_of_tritonclient(datatype):
    data, length = client_request([client_input("x", SAMPLES[datatype], datatype, binary=False)])
    assert length is None
    same(decode(data, length).inputs["x"], SAMPLES[datatype])


def test_a_whole_request_of_tritonclient():
    inputs = [
        client_input("a", SAMPLES["FP32"], "FP32"),
        client_input("b", SAMPLES["INT64"], "INT64", binary=False),
        client_input("c", SAMPLES["BYTES"], "BYTES"),
        client_input("d", np.zeros((0, 3), np.float32), "FP32"),
        client_input("e", np.array(5, np.int8), "INT8"),
        client_input("f", np.zeros((0, 2), object), "BYTES"),
    ]
    outputs = [triton.InferRequestedOutput("z"), triton.InferRequestedOutput("y", binary_data=False)]
    options = {"request_id": "é-1", "timeout": 2_500_000, "priority": 3, "parameters": {"mine": 1}}
    request = decode(*client_request(inputs, outputs, **options))
    assert list(request.inputs) == list("abcdef")
    for one, expected in zip("abc", ("FP32", "INT64", "BYTES")):
        same(request.inputs[one], SAMPLES[expected])
    assert request.inputs["d"].shape == (0, 3)
    same(request.inputs["e"], np.array(5, np.int8))
    assert request.inputs["f"].shape == (0, 2)
    assert request.outputs == (RequestedOutput("z", True), RequestedOutput("y", False))
    assert (request.id, request.timeout) == ("é-1", 2.5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", NAMES.values())
def test_tritonclient_reads_the_response(datatype, binary):
    encoded = answered({"y": SAMPLES[datatype]}, asking(binary=binary, id="r1"))
    assert (encoded.header_length is not None) is binary
    same(received(encoded, "y"), SAMPLES[datatype])
    response = client_result(encoded).get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r1", "m", "7")
    assert response["outputs"][0]["datatype"] == datatype


def test_outputs_come_in_the_order_and_the_form_they_were_asked_for():
    outputs = {"a": np.arange(3, dtype=np.float32), "b": np.arange(2), "c": np.array([True]), "d": np.zeros(1)}
    wanted = (RequestedOutput("c", True), RequestedOutput("a", False), RequestedOutput("b", True))
    encoded = answered(outputs, asking(wanted))
    result = client_result(encoded)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["c", "a", "b"]
    for name in "abc":
        same(result.as_numpy(name), outputs[name])
    assert "id" not in result.get_response()
    assert len(encoded.parts) == 3


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5, np.float32),
        np.zeros((0, 4), np.float32),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2],
    ],
    ids=["scalar", "empty", "transposed", "big-endian, strided"],
)
def test_any_array_is_written(array, binary):
    found = received(answered({"y": array}, asking(binary=binary)), "y")
    assert found.shape == array.shape
    assert np.array_equal(found, array)


def test_binary_and_large_json_in_one_answer():
    """The parts of an answer, put together from data that was made JSON elsewhere."""
    outputs = {"a": np.arange(6, dtype=np.float32), "b": np.arange(4, dtype=np.int32)}
    wanted = (RequestedOutput("a", False), RequestedOutput("b", True))
    described = interface(outputs=[tensor("a", "float32"), tensor("b", "int32")])
    arguments = {"model": "m", "version": "7"}
    texts = {"a": json.dumps(outputs["a"].tolist()).encode()}
    found = client_result(json_body.encode(asking(wanted, id="i"), outputs, described, texts=texts, **arguments))
    expected = client_result(json_body.encode(asking(wanted, id="i"), outputs, described, **arguments))
    assert found.get_response() == expected.get_response()
    for name, array in outputs.items():
        np.testing.assert_array_equal(found.as_numpy(name), array)


# In and out without a copy


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_raw_inputs_are_views_of_the_body(kind):
    images = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    data, length = client_request([client_input("x", images, "FP32")])
    data = kind(data)
    request = decode(data, length)
    same(request.inputs["x"], images)
    assert np.shares_memory(request.inputs["x"], np.frombuffer(data, np.uint8))


def test_raw_outputs_are_views_of_the_answer():
    scores = np.random.default_rng(0).random((8, 1000), np.float32)
    encoded = answered({"y": scores}, asking())
    assert np.shares_memory(np.frombuffer(encoded.parts[1], np.uint8), scores)


# JSON as people write it


@pytest.mark.parametrize("datatype", DATATYPES)
def test_json_is_taken_flat_and_nested(datatype):
    values = seen(SAMPLES[datatype]).tolist()
    if datatype == "BYTES":
        values = [[item.decode() for item in row] for row in values]
    for data in (values, [*values[0], *values[1]]):
        request = decode(body(entry(shape=[2, 3], datatype=datatype, data=data)), None)
        same(request.inputs["x"], seen(SAMPLES[datatype]))


def test_bf16_in_json_is_rounded_to_bf16():
    (value,) = decode(body(entry(shape=[1], datatype="BF16", data=[1.003])), None).inputs["x"]
    assert value == np.float32(1.0)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([], [1]),
        ([0], []),
        ([2, 0], []),
        ([2, 0], [[], []]),
        ([0, 2], []),
        ([1, 1, 2], [[[1, 2]]]),
        ([3], [1, 2.5, -3]),
    ],
)
def test_shapes_in_json(shape, data):
    array = decode(body(entry(shape=shape, data=data)), None).inputs["x"]
    assert array.shape == tuple(shape)
    assert array.ravel().tolist() == np.ravel(data).tolist()


def test_the_header_may_be_sent_with_json_alone():
    data = body(entry())
    assert decode(data, len(data)).inputs["x"].tolist() == [1, 2]


def test_null_is_as_good_as_absent():
    request = decode(body(entry(parameters=None), id=None, parameters=None, outputs=None), None)
    assert (request.id, request.outputs, request.binary, request.timeout) == ("", None, False, None)


def test_what_is_not_known_is_passed_over():
    request = decode(
        body(
            entry(parameters={"content_type": "np"}, more=1),
            model_name="other",
            parameters={"priority": 1, "mine": [1]},
            outputs=[{"name": "y", "datatype": "FP32", "parameters": {"mine": {}}}],
        ),
        None,
    )
    assert request.outputs == (RequestedOutput("y", False),)


def test_sequence_parameters_that_say_nothing_are_passed_over():
    parameters = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    assert decode(body(entry(), parameters=parameters), None).inputs["x"].tolist() == [1, 2]


def test_what_each_output_says_of_itself_comes_before_what_the_request_says():
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    request = decode(body(entry(), outputs=outputs, parameters={"binary_data_output": True}), None)
    assert request.outputs == (RequestedOutput("a", True), RequestedOutput("b", False))
    assert decode(body(entry(), outputs=[]), None).outputs is None


@pytest.mark.parametrize(("sent", "seconds"), [(0, None), (1, 1e-6), (10**400, 86_400)])
def test_timeouts(sent, seconds):
    assert decode(body(entry(), parameters={"timeout": sent}), None).timeout == seconds


# What JSON can't carry on the way out


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "Infinity"), (-np.inf, "-Infinity")]
)
def test_numbers_that_json_lacks_are_strings_in_json_and_themselves_in_binary(value, word, dtype):
    scores = np.array([[1, value]], dtype)
    encoded = answered({"y": scores}, asking(binary=False))
    text = b"".join(encoded.parts)
    assert json.loads(text, parse_constant=pytest.fail)["outputs"][0]["data"] == [1, word]
    np.testing.assert_array_equal(received(encoded, "y"), scores)  # NVIDIA's client reads them
    same(received(answered({"y": scores}, asking()), "y"), scores)


def test_bytes_that_are_no_text_are_sent_as_binary():
    words = np.array([b"\xff"], object)
    with pytest.raises(ProtocolError, match="not UTF-8"):
        answered({"y": words}, asking(binary=False))
    same(received(answered({"y": words}, asking()), "y"), words)


# Properties


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


UNHURRIED = settings(deadline=None)
"""A deadline that a busy machine misses says nothing about the codec."""


shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(shapes)
    if datatype == "BYTES":
        array = np.empty(shape, object)
        array.flat = draw(st.lists(st.binary(max_size=9), min_size=array.size, max_size=array.size))
        return datatype, array
    if datatype == "BF16":
        return datatype, draw(arrays.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    return datatype, draw(arrays.arrays(DATATYPES[datatype], shape))


def written(named):
    """A request with all inputs as raw data."""
    entries, raw = [], b""
    for name, (datatype, array) in named.items():
        data = array.tobytes()
        if datatype == "BYTES":
            data = b"".join(len(item).to_bytes(4, "little") + item for item in array.flat)
        shape = list(array.shape)
        entries.append(raw_entry(len(data), name=name, shape=shape, datatype=datatype))
        raw += data
    return with_raw(raw, *entries)


@given(st.dictionaries(names, tensors(), max_size=4), names, st.booleans())
@UNHURRIED
def test_what_is_sent_arrives_and_comes_back(named, id, binary):
    request = decode(*written(named))
    assert list(request.inputs) == list(named)
    for name, (_, array) in named.items():
        if array.dtype == ml_dtypes.bfloat16:
            assert np.array_equal(request.inputs[name], array.astype(np.float32), equal_nan=True)
        else:
            same(request.inputs[name], array)
    model = interface(outputs=[tensor(name, array.dtype.name) for name, array in request.inputs.items()])
    try:
        encoded = encode(asking(binary=binary, id=id), request.inputs, model, model="m", version="1")
    except ProtocolError:
        assert not binary
        return
    assert client_result(encoded).get_response().get("id", "") == id
    for name, array in request.inputs.items():
        if not binary and array.dtype.kind == "f":
            # JSON has one NaN, and not its bits.
            found = received(encoded, name)
            assert np.array_equal(found, array, equal_nan=True)
            array = np.where(np.isnan(array), found, array)
        same(received(encoded, name), array)


@given(tensors())
@UNHURRIED
def test_what_json_can_carry_arrives(pair):
    datatype, array = pair
    values = seen(array).ravel().tolist()
    try:
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
        data = json.dumps({"inputs": [entry(shape=list(array.shape), datatype=datatype, data=values)]}, allow_nan=False)
    except ValueError:  # no text, no number
        return
    same(decode(data.encode(), None).inputs["x"], seen(array))
