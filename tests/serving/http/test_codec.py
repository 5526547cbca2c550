"""Large JSON is read and written by a real process beside this one, and comes out as if it had been done here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mlflow_trt.errors import DeadlineError, TrtError
from mlflow_trt.serving.http import codec as codec_module
from mlflow_trt.serving.http.codec import Codec
from mlflow_trt.serving.http.codec_messages import EncodedJson, Started
from mlflow_trt.serving.protocol import json_body, protobuf
from mlflow_trt.serving.protocol.datatypes import ProtocolError, to_json

BODY = json.dumps(
    {
        "id": "a",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]},
            {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
        ],
        "outputs": [{"name": "y"}],
        "parameters": {"timeout": 1_500_000},
    }
).encode()


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    made = Codec(60.0)
    yield made
    made.close()


def same(found, expected):
    assert (found.id, found.datatypes, found.outputs) == (expected.id, expected.datatypes, expected.outputs)
    assert (found.binary, found.timeout) == (expected.binary, expected.timeout)
    assert list(found.inputs) == list(expected.inputs)
    for name, array in expected.inputs.items():
        np.testing.assert_array_equal(found.inputs[name], array)


def test_json_is_read(codec):
    same(asyncio.run(codec.decode(BODY, None)), json_body.decode(BODY, None))


def test_raw_data_behind_json_is_read(codec):
    text = b'{"inputs":[{"name":"x","datatype":"INT8","shape":[3],"parameters":{"binary_data_size":3}}]}'
    same(
        asyncio.run(codec.decode(bytearray(text + b"\1\2\3"), len(text))), json_body.decode(text + b"\1\2\3", len(text))
    )


def test_a_message_of_grpc_is_read(codec):
    message = protobuf.ModelInferRequest(model_name="m", model_version="3")
    message.inputs.add(name="x", datatype="INT64", shape=[3]).contents.int64_contents.extend([1, 2, 3])
    data = message.SerializeToString()
    model, version, found = asyncio.run(codec.decode_grpc(data))
    assert (model, version) == ("m", "3")
    same(found, protobuf.decode(*protobuf.split(data)))


def test_outputs_are_written(codec):
    arrays = {"y": np.array([[0.1, np.nan], [-np.inf, 1]], np.float32), "n": np.array([2**62])}
    types = {"y": "FP32", "n": "INT64"}
    found = asyncio.run(codec.texts(arrays, types))
    for name, array in arrays.items():
        assert json.loads(bytes(found[name])) == to_json(name, array, types[name])


def test_what_is_refused_is_refused_in_the_same_words(codec):
    bad = BODY.replace(b"FP32", b"FP31")
    with pytest.raises(ProtocolError) as here:
        json_body.decode(bad, None)
    with pytest.raises(ProtocolError) as there:
        asyncio.run(codec.decode(bad, None))
    assert str(there.value) == str(here.value)
    with pytest.raises(ProtocolError, match="is not a ModelInferRequest"):
        asyncio.run(codec.decode_grpc(b"\xff"))


def test_many_at_once_get_their_own(codec):
    async def main():
        texts = [
            json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [n]}]}) for n in range(20)
        ]
        return await asyncio.gather(*(codec.decode(text.encode(), None) for text in texts))

    assert [int(request.inputs["x"][0]) for request in asyncio.run(main())] == list(range(20))


def test_a_process_that_has_ended_is_replaced(codec):
    asyncio.run(codec.decode(BODY, None))
    before = codec.pid
    os.kill(before, signal.SIGKILL)
    until_ended(codec)
    assert asyncio.run(codec.decode(BODY, None)).id == "a"
    assert codec.pid != before


def test_one_that_ends_over_a_piece_fails_this_piece_alone(codec, caplog):
    async def main():
        os.kill(codec.pid, signal.SIGSTOP)
        asked = asyncio.create_task(codec.decode(BODY, None))
        await asyncio.sleep(0.2)
        os.kill(codec.pid, signal.SIGKILL)
        with pytest.raises(TrtError, match="The process that reads and writes large JSON ended"):
            await asked
        return await codec.decode(BODY, None)

    asyncio.run(codec.decode(BODY, None))
    with caplog.at_level(logging.ERROR):
        assert asyncio.run(main()).id == "a"
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["codec_ended"]


def test_what_takes_too_long_is_ended(codec, monkeypatch):
    asyncio.run(codec.decode(BODY, None))
    before = codec.pid
    monkeypatch.setattr(codec, "_timeout", 0.3)
    os.kill(before, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match=r"not read or written within 0\.3 s"):
        asyncio.run(codec.decode(BODY, None))
    assert time.monotonic() - begin < 10
    monkeypatch.setattr(codec, "_timeout", 60.0)
    assert asyncio.run(codec.decode(BODY, None)).id == "a"
    assert codec.pid != before


def test_an_answer_of_another_kind_ends_nothing_quietly(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "receive", lambda end: (Started(), []))
    with pytest.raises(TypeError, match="sent Started"):
        codec._ask(EncodedJson, Started(), [])
    codec._kill()


def test_a_codec_that_is_closed_leaves_no_process():
    made = Codec(60.0)
    assert made.pid is None, "it is started when it is first needed"
    asyncio.run(made.decode(BODY, None))
    pid = made.pid
    made.close()
    assert made.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def until_ended(codec: Codec) -> None:
    end = time.monotonic() + 20
    while codec._process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
