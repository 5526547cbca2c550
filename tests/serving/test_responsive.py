"""A probe is answered at once, whatever another client sends or gets: what takes long is done beside the event loop."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import mlflow_trt

from .registered import answer, plan, rows
from .running import Served, request, served

torch = pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.slow]

PROMPT = 0.2
WIDE = 1_500_000
"""Floats of a row, some 30 MB as JSON."""
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """m: (batch, 4) → (batch, 3); wide: (batch, 4) → (batch, WIDE)."""

    class Wide(torch.nn.Module):
        def forward(self, x):
            return x[:, :1] + torch.arange(WIDE, dtype=torch.float32) / 7

    folder = tmp_path_factory.mktemp("responsive")
    mlflow_trt.save_model(plan(1.0), folder / "plus1")
    wide = plan(0.0, golden="none", module=Wide())
    wide.manifest.interface.outputs[0].__dict__["shape"] = ("batch", WIDE)
    mlflow_trt.save_model(wide, folder / "wide")
    models = [f"--model=m={folder / 'plus1'}", f"--model=wide={folder / 'wide'}"]
    with served(folder, *models, grpc=True) as found:
        yield found


def post(server: Served, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Asks without looking at the answer: a client that parses would hold up the probes of its own process."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def slowest_probe(server: Served, ask: Callable[[], object]) -> float:
    """Seconds that the slowest probe took while a client asked."""
    ended = threading.Event()
    slowest = [0.0]

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not ended.is_set():
            begin = time.perf_counter()
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read()
            slowest[0] = max(slowest[0], time.perf_counter() - begin)
            time.sleep(0.005)
        connection.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        ask()
    finally:
        ended.set()
        thread.join()
    return slowest[0]


def assert_prompt(server: Served, ask: Callable[[], object]) -> None:
    """A machine that is busy with other things is late now and then; a server that stands still is late every time."""
    found = []
    for _ in range(3):
        found.append(slowest_probe(server, ask))
        if found[-1] < PROMPT:
            return
    pytest.fail(f"the slowest probes took {found} s")


def large_request(megabytes: int) -> bytes:
    """One row too many numbers for the model: all of them are read before that is known."""
    numbers = b"0.12345678," * (megabytes * (1 << 20) // 11)
    count = numbers.count(b",")
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"data":[' % count
    return head + numbers[:-1] + b"]}]}"


def test_a_large_answer(server):
    found = []

    def ask():
        found[:] = post(server, "/v2/models/wide/infer", json.dumps(request(rows(1)["x"].tolist())).encode())

    assert_prompt(server, ask)
    status, text = found
    assert (status, len(text) > 20_000_000) == (200, True)
    content = json.loads(text)
    (output,) = content["outputs"]
    assert (content["model_name"], output["shape"]) == ("wide", [1, WIDE])
    expected = rows(1)["x"][0, 0] + np.arange(WIDE, dtype=np.float32) / 7
    np.testing.assert_allclose(np.array(output["data"], np.float32), expected, rtol=1e-6)


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/invocations"])
def test_a_large_body(server, path):
    body = large_request(64) if path != "/invocations" else b'{"inputs":{"x":[[' + b"0.125," * 2_000_000 + b"1]]}}"
    found = []

    def ask():
        found[:] = post(server, path, body, **JSON)

    assert_prompt(server, ask)
    assert found[0] == 400, found[1][:300]
    assert b"x" in found[1]


def test_many_inputs(server):
    one = json.dumps({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]})
    body = b'{"inputs":[' + ",".join([one] * 300_000).encode() + b"]}"
    found = []

    def ask():
        found[:] = post(server, "/v2/models/m/infer", body)

    assert_prompt(server, ask)
    assert found[0] == 400
    assert b"300,000 inputs" in found[1]


def test_strings_that_no_model_takes(server):
    head = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1 << 23, 4]}]}
    head["inputs"][0]["parameters"] = {"binary_data_size": 1 << 27}
    text = json.dumps(head).encode()
    body = text + bytes(1 << 27)
    found = []

    def ask():
        length = {"Inference-Header-Content-Length": str(len(text))}
        found[:] = post(server, "/v2/models/m/infer", body, **length)

    assert_prompt(server, ask)
    assert found[0] == 400
    assert b"BYTES" in found[1]


def test_a_body_that_becomes_large(server):
    body = gzip.compress(b" " * (64 << 20))
    found = []

    def ask():
        found[:] = post(server, "/v2/models/m/infer", body, **{"Content-Encoding": "gzip"})

    assert_prompt(server, ask)
    assert found[0] == 400


def test_a_large_answer_that_is_compressed(server):
    found = []

    def ask():
        body = json.dumps(request(rows(1)["x"].tolist())).encode()
        found[:] = post(server, "/v2/models/wide/infer", body, **{"Accept-Encoding": "gzip"})

    assert_prompt(server, ask)
    assert len(json.loads(gzip.decompress(found[1]))["outputs"][0]["data"]) == WIDE


def test_typed_contents_over_grpc(server):
    grpc = pytest.importorskip("grpc")
    from mlflow_trt.serving.protocol import protobuf

    message = protobuf.ModelInferRequest(model_name="m")
    entry = message.inputs.add(name="x", datatype="INT64", shape=[1, 8_000_000])
    entry.contents.int64_contents.extend([1] * 8_000_000)
    data = message.SerializeToString()
    found = []
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:

        def ask():
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer")(data, timeout=120)
            found[:] = [refused.value.code()]

        assert_prompt(server, ask)
    assert found == [grpc.StatusCode.INVALID_ARGUMENT]


# --- the same answers, whichever way ---


def test_what_is_large_is_answered_as_what_is_small(server):
    """White space makes a small request a large one."""
    x = rows(8)["x"]
    text = json.dumps(request(x.tolist(), id="seven")).encode()
    small = post(server, "/v2/models/m/infer", text)
    large = post(server, "/v2/models/m/infer", text + b" " * (1 << 20))
    assert small == large
    assert small[0] == 200
    found = json.loads(small[1])["outputs"][0]
    np.testing.assert_array_equal(np.reshape(found["data"], found["shape"]), answer(x, 1))
    body = json.dumps({"inputs": {"x": x.tolist()}}).encode()
    small = post(server, "/invocations", body, **JSON)
    large = post(server, "/invocations", body + b" " * (1 << 20), **JSON)
    assert small == large
    np.testing.assert_array_equal(json.loads(small[1])["predictions"]["scores"], answer(x, 1))
    too_many = json.dumps({"inputs": {"x": rows(9)["x"].tolist()}}).encode()
    small = post(server, "/invocations", too_many, **JSON)
    large = post(server, "/invocations", too_many + b" " * (1 << 20), **JSON)
    assert small == large
    assert small[0] == 400


def test_raw_data_behind_large_json(server):
    x = rows(2)["x"]
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}]}
    text = json.dumps(head).encode() + b" " * (1 << 20)
    length = {"Inference-Header-Content-Length": str(len(text))}
    status, found = post(server, "/v2/models/m/infer", text + x.tobytes(), **length)
    assert status == 200, found
    assert json.loads(found)["outputs"][0]["data"] == answer(x, 1).ravel().tolist()


def test_the_process_beside_is_started_again(server):
    import os
    import signal
    from pathlib import Path

    def children():
        tasks = Path(f"/proc/{server.process.pid}/task")
        found = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
        return [pid for pid in found if b"codec_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    text = json.dumps(request(rows(1)["x"].tolist())).encode() + b" " * (1 << 20)
    assert post(server, "/v2/models/m/infer", text)[0] == 200
    before = children()
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    statuses = [post(server, "/v2/models/m/infer", text)[0] for _ in range(3)]
    assert statuses[1:] == [200, 200]
    assert not set(before) & set(children())


def test_a_client_that_leaves_a_large_body_half_sent(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n{")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.alive()
