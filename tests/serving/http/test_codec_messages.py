"""What the server and the process that reads and writes large JSON tell each other arrives as it was sent."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from mlflow_trt.serving.http import codec_messages
from mlflow_trt.serving.protocol.inference_request import InferenceRequest, RequestedOutput

from ..sent import ERROR, VERSION

MESSAGES = [
    codec_messages.DecodeJson(12),
    codec_messages.DecodeProtobuf(),
    codec_messages.EncodeJson([("x", "float32", (2, 4))], {"x": "FP32"}),
    codec_messages.Invoke(VERSION, {"path": "/invocations", "headers": [(b"a", b"b")]}),
    codec_messages.Predicted([("x", "float32", (2, 4))]),
    codec_messages.Started(),
    codec_messages.DecodedRequest("", [], {}, [("y", True)], False, None, "m", "3"),
    codec_messages.EncodedJson(),
    codec_messages.Predict([]),
    codec_messages.Invoked(200, {"a": "b"}, "application/json"),
    codec_messages.CodecFailed(ERROR),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_codec_s_message_arrives_as_it_was_sent(message):
    ends = socket.socketpair()
    with ends[0], ends[1]:
        codec_messages.send(ends[0], message, [b"one", b"", memoryview(b"three")])
        arrived, buffers = codec_messages.receive(ends[1])
    assert type(arrived) is type(message)
    assert arrived == message
    assert [bytes(buffer) for buffer in buffers] == [b"one", b"", b"three"]


def test_every_kind_of_message_is_tried_here():
    assert {type(message) for message in MESSAGES} == set(codec_messages._TYPES)


def test_a_request_is_put_together_again():
    inputs = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "names": np.array([b"a", b"bc"], object)}
    outputs = (RequestedOutput("y", True), RequestedOutput("z", False))
    request = InferenceRequest("id", inputs, {"x": "FP32", "names": "BYTES"}, outputs, True, 0.5)
    decoded, buffers = codec_messages.DecodedRequest.of(request, "m", "3")
    again = decoded.request(buffers)
    assert (decoded.model, decoded.version) == ("m", "3")
    assert (again.id, again.datatypes, again.outputs) == (request.id, request.datatypes, outputs)
    assert (again.binary, again.timeout) == (True, 0.5)
    for name, array in inputs.items():
        np.testing.assert_array_equal(again.inputs[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(6, dtype=">i4"),
        np.array(1.5, np.float16),
        np.zeros((0, 3), np.float64),
        np.array([[True], [False]]),
        np.array([b"a", b"", "é".encode()], object),
    ],
    ids=["transposed", "big-endian", "scalar", "empty", "bool", "bytes"],
)
def test_any_array_is_put_together_again(array):
    heads, buffers = codec_messages.pack({"x": array, "y": np.ones(1)})
    found = codec_messages.unpack(heads, [memoryview(bytes(buffer)) for buffer in buffers])
    assert list(found) == ["x", "y"]
    assert found["x"].shape == array.shape
    np.testing.assert_array_equal(found["x"], array)


@pytest.mark.parametrize("cut", [0, 1, 4, 20, -1])
def test_a_frame_that_breaks_off(cut):
    ends = socket.socketpair()
    with ends[0], ends[1]:
        codec_messages.send(ends[0], codec_messages.EncodedJson(), [bytes(100)])
        ends[0].shutdown(socket.SHUT_WR)
        frame = b"".join(iter(lambda: ends[1].recv(1 << 16), b""))
    ends = socket.socketpair()
    with ends[1]:
        with ends[0]:
            ends[0].sendall(frame[:cut])
        with pytest.raises(EOFError):
            codec_messages.receive(ends[1])
