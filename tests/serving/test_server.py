"""The server as its clients meet it: a process of its own, real HTTP and gRPC clients, the reference backend."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

import mlflow_trt

from .light import until
from .registered import answer, plan, rows
from .running import AUTHORIZED, TOKEN, Served, counted, request, served

pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """Two models: x · 2 + 1 and x · 2 + 5, (batch, 4) → (batch, 3)."""
    found = tmp_path_factory.mktemp("served")
    for shift in (1, 5):
        mlflow_trt.save_model(plan(float(shift)), found / f"plus{shift}")
    return found


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    models = [f"--model=m={folder / 'plus1'}", f"--model=other={folder / 'plus5'}"]
    with served(folder, *models, grpc=True) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(folder) -> Iterator[Served]:
    """With a token, a small limit, and two processes that speak HTTP."""
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    options = ["--token-file", str(token), "--max-body", "1", "--http-processes", "2"]
    with served(folder, f"--model=m={folder / 'plus1'}", *options) as found:
        yield found


JSON = {"Content-Type": "application/json"}
ONE = rows(1)["x"].tolist()


# --- Triton's own clients ---


def test_tritons_http_client_works_unchanged(server):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata("m")
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    x = rows(3)["x"]
    given = http.InferInput("x", [3, 4], "FP32")
    given.set_data_from_numpy(x)
    for binary in (True, False):
        wanted = [http.InferRequestedOutput("scores", binary_data=binary)]
        for compression in (None, "gzip", "deflate"):
            found = client.infer(
                "m",
                [given],
                outputs=wanted,
                request_id="seven",
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
            np.testing.assert_array_equal(found.as_numpy("scores"), answer(x, 1))
            assert found.get_response()["id"] == "seven"
    version = described["versions"][0]
    assert client.infer("m", [given], model_version=version).get_response()["model_version"] == version
    with pytest.raises(http.InferenceServerException, match="is not served"):
        client.infer("m", [given], model_version="99")
    with pytest.raises(http.InferenceServerException, match="nobody"):
        client.infer("nobody", [given])
    client.close()


def test_tritons_grpc_client_works_unchanged(server):
    grpc = pytest.importorskip("tritonclient.grpc")
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    x = rows(2)["x"]
    given = grpc.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(x)
    assert client.is_model_ready("other")
    np.testing.assert_array_equal(client.infer("other", [given]).as_numpy("scores"), answer(x, 5))
    client.close()


# --- HTTP ---


def test_json_in_and_out_and_two_models(server):
    for model, shift in (("m", 1), ("other", 5)):
        found = server.infer(request(ONE, id="a"), model)
        assert found.status_code == 200, found.text
        content = found.json()
        assert (content["id"], content["model_name"]) == ("a", model)
        assert content["outputs"][0]["data"] == answer(np.array(ONE, np.float32), shift).ravel().tolist()


def test_gzip_both_ways_and_keep_alive(server):
    session = requests.Session()
    body = gzip.compress(json.dumps(request(rows(8)["x"].tolist())).encode())
    for _ in range(3):
        found = session.post(f"{server.url}/v2/models/m/infer", body, headers={"Content-Encoding": "gzip"}, timeout=30)
        assert found.json()["outputs"][0]["shape"] == [8, 3]
    described = session.get(f"{server.url}/metrics", headers={"Accept-Encoding": "gzip"}, timeout=30)
    assert described.headers["content-encoding"] == "gzip"
    assert "mlflow_trt_requests_total" in described.text


def test_mlflows_own_routes(server):
    pandas = pytest.importorskip("pandas")
    assert server.get("/ping").status_code == 200
    assert server.get("/version").text.split(".")[0] in ("2", "3")
    found = server.post(
        "/invocations", json.dumps({"inputs": {"x": ONE}}), headers={"Content-Type": "application/json"}
    )
    np.testing.assert_array_equal(found.json()["predictions"]["scores"], answer(np.array(ONE, np.float32), 1))
    for _ in range(2):
        frame = pandas.DataFrame({"x": [np.array(row, np.float32) for row in rows(2)["x"]]})
        found = server.post(
            "/invocations", frame.to_parquet(), headers={"Content-Type": "application/vnd.apache.parquet"}
        )
    wrong = server.post("/invocations", b"{", headers=JSON)
    assert wrong.status_code == 400


def test_metrics_count_what_happened(server):
    before = counted(server)
    server.infer(request(rows(3)["x"].tolist()))
    server.infer({"inputs": []})
    after = counted(server)
    for status in ("200", "400"):
        key = f'mlflow_trt_requests_total{{model="m",protocol="http",status="{status}"}}'
        assert after[key] == before.get(key, 0) + 1
    assert after['mlflow_trt_model_ready{model="other"}'] == 1
    assert after['mlflow_trt_batch_rows_sum{model="m"}'] > before.get('mlflow_trt_batch_rows_sum{model="m"}', 0)


def test_concurrent_callers_get_their_own_rows(server):
    def ask(seed):
        x = rows(1 + seed % 5, seed)["x"]
        found = server.infer(request(x.tolist())).json()["outputs"][0]
        np.testing.assert_array_equal(np.reshape(found["data"], found["shape"]), answer(x, 1))
        return True

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(200)))
    assert counted(server)['mlflow_trt_batch_rows_bucket{le="2.0",model="m"}'] > 0


# --- bad input ---


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (json.dumps(request(ONE)).replace("FP32", "FP31").encode(), {}, 400),
        (json.dumps(request(ONE)).replace("[1, 4]", "[4, 1, 1]").encode(), {}, 400),
        (json.dumps(request(ONE)).replace("[1, 4]", "[1099511627776, 1099511627776]").encode(), {}, 400),
        (json.dumps(request(rows(9)["x"].tolist())).encode(), {}, 400),
        (json.dumps(request([[float("nan")] * 4])).encode(), {}, 400),
        (json.dumps({"inputs": request(ONE)["inputs"] * 2}).encode(), {}, 400),
        (b'{"inputs":[]}', {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "99"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "1e3"}, 400),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0)[:-4], {"Content-Encoding": "gzip"}, 400),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"[" * 100_000, {}, 400),
    ],
)
def test_bad_requests_get_the_protocols_error_and_harm_nothing(server, body, headers, status):
    found = server.post("/v2/models/m/infer", body, headers=headers)
    assert found.status_code == status, found.text
    assert set(found.json()) == {"error"}
    assert "Traceback" not in found.text
    assert server.infer(request(ONE)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/m/versions/9", 404),
        ("GET", "/v2/models/m/nothing", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("DELETE", "/v2/models/m", 405),
        ("GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v2/models/m%0d%0aSet-Cookie:x", 404),
        ("GET", "/v2/webhook", 404),
    ],
)
def test_wrong_routes(server, method, path, status):
    found = requests.request(method, server.url + path, timeout=30)
    assert (found.status_code, list(found.json())) == (status, ["error"])
    if status == 405:
        assert found.headers["allow"]


def test_broken_off_and_slow_bodies_harm_nothing(server):
    for sent in (b"", b"{", b'{"inputs"'):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + sent)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        body = json.dumps(request(ONE)).encode()
        connection.sendall(
            f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for byte in body:
            connection.sendall(bytes([byte]))
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert server.alive()


def test_nothing_that_a_client_sends_becomes_a_log_line_of_its_own(server):
    forged = '{"level": "error", "message": "forged"}'
    server.get("/v2/models/m%0a" + forged)
    server.post("/v2/models/m/infer", b"{\n" + forged.encode(), headers={"X-Request-Id": forged})
    assert all(json.loads(line)["message"] != "forged" for line in server.lines() if line.startswith("{"))


# --- token, limits, several processes ---


def test_a_token_is_needed_for_all_but_probes(guarded):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for path in ("/v2", "/v2/models/m", "/metrics", "/version", "/openapi.json", "/v2/nothing"):
            assert guarded.get(path, headers=headers).status_code == 401
        found = guarded.infer(request(ONE), headers=headers)
        assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
    assert guarded.get("/v2/health/live").status_code == guarded.get("/v2/health/ready").status_code == 200
    assert guarded.infer(request(ONE), headers=AUTHORIZED).status_code == 200


def test_large_bodies_are_refused_whether_or_not_they_say_so(guarded):
    large = b" " * ((1 << 20) + 1)
    assert guarded.post("/v2/models/m/infer", large, headers=AUTHORIZED).status_code == 413
    assert guarded.post("/v2/models/m/infer", iter([large[: 1 << 19]] * 3), headers=AUTHORIZED).status_code == 413
    bomb = gzip.compress(b" " * (100 << 20))
    headers = {**AUTHORIZED, "Content-Encoding": "gzip"}
    assert guarded.post("/v2/models/m/infer", bomb, headers=headers).status_code == 413
    assert guarded.infer(request(ONE), headers=AUTHORIZED).status_code == 200


def test_several_processes_answer_as_one(guarded):
    def ask(seed):
        x = rows(1 + seed % 8, seed)["x"]
        found = guarded.infer(request(x.tolist()), headers=AUTHORIZED).json()["outputs"][0]
        np.testing.assert_array_equal(np.reshape(found["data"], found["shape"]), answer(x, 1))
        return True

    time.sleep(0.5)  # until all that the HTTP workers counted so far is known
    before = counted(guarded, headers=AUTHORIZED).get(COUNT, 0)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(100)))
    too_many = guarded.infer(request(rows(9)["x"].tolist()), headers=AUTHORIZED)
    assert too_many.status_code == 400
    assert "above the maximum" in too_many.json()["error"]
    found = guarded.post("/invocations", json.dumps({"inputs": {"x": ONE}}), headers={**AUTHORIZED, **JSON})
    assert found.status_code == 200, found.text
    until(lambda: counted(guarded, headers=AUTHORIZED).get(COUNT, 0) == before + 100)


COUNT = 'mlflow_trt_requests_total{model="m",protocol="http",status="200"}'


def workers(server):
    """The processes that speak HTTP."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    found = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"serving.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def connections(server):
    """How many each HTTP worker has, in order."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    established = {f"socket:[{row[9]}]" for row in rows if row[3] == "01"}

    def links(pid):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(path)

    return sorted(sum(link in established for link in links(pid)) for pid in workers(server))


def test_connections_are_spread_evenly(folder):
    with served(folder, f"--model=m={folder / 'plus1'}", "--http-processes", "2") as server:
        until(lambda: connections(server) == [0, 0])
        time.sleep(0.5)  # until the HTTP workers have told
        opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        until(lambda: connections(server) == [5, 5])
        for connection in opened[::2]:
            connection.close()
        until(lambda: sum(connections(server)) == 5)
        time.sleep(0.5)
        opened += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        until(lambda: connections(server) == [5, 5])
        for connection in opened:
            connection.close()


def test_a_front_that_dies_is_replaced(guarded):
    before = workers(guarded)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(workers(guarded)) - set(before)) == 1)
    until(lambda: guarded.infer(request(ONE), headers=AUTHORIZED).status_code == 200)


# --- the end ---


@pytest.mark.parametrize("options", [(), ("--http-processes", "2")], ids=["one process", "HTTP workers"])
def test_sigterm_answers_what_is_under_way_and_ends_with_0(folder, options):
    with served(folder, f"--model=m={folder / 'plus1'}", "--delay", "1500", *options) as server:
        found = []
        asking = threading.Thread(target=lambda: found.append(server.infer(request(ONE))))
        asking.start()
        until(lambda: waiting(server) == 1)
        started = workers(server)
        assert server.end() == 0
        asking.join()
        assert found[0].status_code == 200
        assert all(json.loads(line) for line in server.lines())
        assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


def waiting(server):
    return server.get("/v2/models/m").json()["status"]["waiting"]


def send(server, stack):
    """Asks without waiting for the answer."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    body = json.dumps(request(ONE)).encode()
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def test_a_full_queue_a_deadline_and_clients_that_leave(folder):
    with served(folder, f"--model=m={folder / 'plus1'}", "--delay", "20000", "--max-queue", "2") as server:
        late = server.infer(request(ONE, parameters={"timeout": 1}))
        assert (late.status_code, list(late.json())) == (504, ["error"])
        with contextlib.ExitStack() as clients:
            for _ in range(2):
                send(server, clients)
            until(lambda: waiting(server) == 2)
            full = server.infer(request(ONE))
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) > 0
        until(lambda: waiting(server) == 0, 5)  # their work was dropped
        key = 'mlflow_trt_requests_total{model="m",protocol="http",status="499"}'
        until(lambda: counted(server).get(key) == 2)


def test_what_can_t_be_loaded_ends_the_server_with_its_reason(folder, tmp_path):
    with pytest.raises(AssertionError) as failed, served(tmp_path, str(folder / "nothing")):
        pass
    assert "manifest.json can't be read" in str(failed.value)


def test_a_port_that_is_taken_is_a_typed_error(folder, server, tmp_path):
    for options in ((), ("--http-processes", "1")):
        command = [sys.executable, "-m", "mlflow_trt", "serve", str(folder / "plus1"), "--port", str(server.port)]
        done = subprocess.run(
            [*command, "--backend", "reference", *options], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "can't be listened on" in done.stderr
        assert "Traceback" not in done.stderr


def test_generated_requests_get_what_the_openapi_document_says(server, tmp_path):
    """schemathesis sends what the document allows and what it forbids, some hundreds of each."""
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"]
    done = subprocess.run(
        [*command, "--checks", checks, "--max-examples", "50", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert server.infer(request(ONE)).status_code == 200
