"""What the server's processes tell each other arrives as it was sent."""

from __future__ import annotations

import marshal
import socket

import numpy as np
import pytest
from interfaces import interface, tensor

from mlflow_trt.errors import BusyError, TrtError
from mlflow_trt.plan.manifest import ShapeRange
from mlflow_trt.serving.config import LoadOptions, ServerConfig
from mlflow_trt.serving.error_parts import ErrorParts
from mlflow_trt.serving.http import codec_messages
from mlflow_trt.serving.limits import Limits
from mlflow_trt.serving.protocol.datatypes import ProtocolError
from mlflow_trt.serving.protocol.inference_request import InferenceRequest, RequestedOutput
from mlflow_trt.serving.served_model import ServedVersion
from mlflow_trt.serving.workers import messages

VERSION = ServedVersion(
    uri="models:/m/3",
    version="3",
    platform="tensorrt_rtx-1.6.1.120",
    interface=interface([tensor("x", ("n", 4))], [tensor("y", ("n", 1))]),
    profiles=({"x": ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))},),
    mlmodel="flavors: {}",
)
ERROR = ErrorParts("BusyError", "It is full.", "room", "try again")
PLACES = [("x", "float32", (8, 3, 224, 224), 4096), ("ids", "int64", (), 0)]
CONFIG = ServerConfig(
    grpc_port=8001, options=LoadOptions(devices=(0, 1)), token="secret", limits=Limits(max_connections=7)
)
BETWEEN_PROCESSES = [
    messages.Infer(1, "m", PLACES, 12.5),
    messages.Infer(2, "m", [], None),
    messages.Cancel(1),
    messages.FreeBlock(4096, 100),
    messages.WorkerLoad(3, 4),
    messages.InferenceCount("m", "http", 200, 0.1),
    messages.OtherCount("/v2", "http", 404),
    messages.CutCount("idle_time"),
    messages.Refresh("m"),
    messages.MetricsQuery(5),
    messages.Configure(CONFIG),
    messages.Drain(),
    messages.VersionLoaded("m", VERSION),
    messages.ModelStatus("m", None, {"state": "ready", "since": 1.5}, "3"),
    messages.InferenceAnswer(1, "3", "tensorrt", PLACES, 8, 16, 0.1, 0.2),
    messages.MetricsText(5, PLACES[0]),
    messages.RequestFailed(1, ERROR),
]
WITH_THE_CODEC = [
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


@pytest.mark.parametrize("message", BETWEEN_PROCESSES, ids=lambda message: type(message).__name__)
def test_a_worker_s_message_arrives_as_it_was_sent(message):
    arrived = messages.decode(marshal.loads(marshal.dumps(messages.encode(message))))
    assert type(arrived) is type(message)
    assert arrived == message


@pytest.mark.parametrize("message", WITH_THE_CODEC, ids=lambda message: type(message).__name__)
def test_a_codec_s_message_arrives_as_it_was_sent(message):
    ends = socket.socketpair()
    with ends[0], ends[1]:
        codec_messages.send(ends[0], message, [b"one", b"", memoryview(b"three")])
        arrived, buffers = codec_messages.receive(ends[1])
    assert type(arrived) is type(message)
    assert arrived == message
    assert [bytes(buffer) for buffer in buffers] == [b"one", b"", b"three"]


def test_every_kind_of_message_is_tried_here():
    assert {type(message) for message in BETWEEN_PROCESSES} == set(messages._TYPES)
    assert {type(message) for message in WITH_THE_CODEC} == set(codec_messages._TYPES)


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


@pytest.mark.parametrize("kind", [BusyError, ProtocolError, TrtError])
def test_an_error_is_put_together_again(kind):
    error = ErrorParts.of(kind("It is so.", "else", "do this")).error()
    assert type(error) is kind
    assert (error.found, error.expected, error.remedy) == ("It is so.", "else", "do this")


@pytest.mark.parametrize("name", ["NobodyKnowsIt", "MlflowException", "annotations"])
def test_an_error_of_another_kind_is_a_plain_one(name):
    assert type(ErrorParts(name, "It is so.", "", "").error()) is TrtError
