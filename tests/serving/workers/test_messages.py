"""What the server and its HTTP workers tell each other arrives as it was sent."""

from __future__ import annotations

import marshal

import pytest

from mlflow_trt.serving.config import LoadOptions, ServerConfig
from mlflow_trt.serving.limits import Limits
from mlflow_trt.serving.workers import messages

from ..sent import ERROR, VERSION

PLACES = [("x", "float32", (8, 3, 224, 224), 4096), ("ids", "int64", (), 0)]


CONFIG = ServerConfig(
    grpc_port=8001, options=LoadOptions(devices=(0, 1)), token="secret", limits=Limits(max_connections=7)
)


MESSAGES = [
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


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_worker_s_message_arrives_as_it_was_sent(message):
    arrived = messages.decode(marshal.loads(marshal.dumps(messages.encode(message))))
    assert type(arrived) is type(message)
    assert arrived == message


def test_every_kind_of_message_is_tried_here():
    assert {type(message) for message in MESSAGES} == set(messages._TYPES)
