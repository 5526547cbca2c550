"""How a server ends under load: no request that it took is lost, and clients learn of the end in time.

The server's models are stand-ins (``light.py``).
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .light import light, until
from .running import Served

pytestmark = [pytest.mark.xdist_group("ending"), pytest.mark.timeout(300)]

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
WAYS = pytest.mark.parametrize("options", [(), ("--http-processes", "1")], ids=["one process", "HTTP workers"])


class Load:
    """Clients that ask on and on; ``outcomes`` counts what they got."""

    def __init__(self, *clients: Callable[[], None]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._threads = ThreadPoolExecutor(len(clients))
        self._running = [self._threads.submit(client, self) for client in clients]

    def end(self) -> None:
        self.stopped.set()
        for running in self._running:
            running.result(60)
        self._threads.shutdown()


def http_client(port: int, *, keep: bool) -> Callable[[Load], None]:
    """Asks over one connection for as long as the server keeps it, or over a new one each time."""

    def run(load: Load) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.auto_open = False
        while not load.stopped.is_set():
            if connection.sock is None:
                try:
                    connection.connect()
                except (TimeoutError, ConnectionRefusedError):
                    load.outcomes["refused"] += 1
                    return
            try:
                connection.request("POST", "/v2/models/m/infer", BODY)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                load.outcomes[f"lost: {error!r}"] += 1
                return
            right = response.status == 200 and json.loads(content)["outputs"][0]["data"] == [10.0]
            load.outcomes["answered" if right else f"{response.status}: {content!r}"] += 1
            if not keep or response.will_close:
                connection.close()

    return run


def grpc_client(port: int) -> Callable[[Load], None]:
    """Asks again once it has an answer."""
    client_module = pytest.importorskip("tritonclient.grpc")

    def run(load: Load) -> None:
        x = client_module.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
        with client_module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not load.stopped.is_set():
                try:
                    found = client.infer("m", [x], client_timeout=30).as_numpy("y")
                except client_module.InferenceServerException as error:
                    load.outcomes[str(error.status())] += 1
                    if error.status() == "StatusCode.UNAVAILABLE":
                        return
                else:
                    load.outcomes["answered" if found.tolist() == [[10.0]] else f"wrong: {found}"] += 1

    return run


def grpc_stream_of_calls(port: int, rate: float) -> Callable[[Load], None]:
    """Asks so many times in a second, whatever becomes of it."""
    client_module = pytest.importorskip("tritonclient.grpc")

    def run(load: Load) -> None:
        x = client_module.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
        lock = threading.Lock()
        asked = told_of = 0

        def told(result, error) -> None:
            nonlocal told_of
            with lock:
                told_of += 1
                load.outcomes["answered" if error is None else str(error.status())] += 1

        with client_module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not load.stopped.is_set():
                client.async_infer("m", [x], told, client_timeout=30)
                asked += 1
                time.sleep(1 / rate)
            until(lambda: told_of == asked)  # to close the client cancels what is under way

    return run


def ended_under_load(server: Served, *, seconds: float = 0.5) -> Counter[str]:
    clients = [http_client(server.port, keep=keep) for keep in (True, True, False, False)]
    clients += [grpc_client(server.grpc_port)] * 3 + [grpc_stream_of_calls(server.grpc_port, 100)]
    load = Load(*clients)
    until(lambda: load.outcomes["answered"] > 50)
    time.sleep(seconds)
    assert server.end() == 0
    load.end()
    return load.outcomes


@WAYS
@pytest.mark.parametrize("milliseconds", [0, 50])
def test_no_request_that_was_taken_is_lost(tmp_path, options, milliseconds):
    model = f"--model=m=/light/{milliseconds}/1"
    with light(tmp_path, model, "--drain", "0.3", *options, grpc=True) as server:
        outcomes = ended_under_load(server)
    assert set(outcomes) <= {"answered", "refused", "StatusCode.UNAVAILABLE"}, outcomes
    assert outcomes["answered"] > 50


@WAYS
def test_it_says_that_it_is_not_ready_before_it_stops_listening(tmp_path, options):
    client_module = pytest.importorskip("tritonclient.grpc")
    with light(tmp_path, "--drain", "2", *options, grpc=True) as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kept.request("POST", "/v2/models/m/infer", BODY)
        first = kept.getresponse()
        assert (first.status, first.getheader("connection")) == (200, None)
        first.read()
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        until(lambda: server.get("/v2/health/ready").status_code == 503, 1.5)
        for path, status in (("/health", 503), ("/ping", 503), ("/v2/health/live", 200)):
            assert server.get(path).status_code == status
        with client_module.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            x = client_module.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
            assert client.infer("m", [x]).as_numpy("y").tolist() == [[10.0]]
        kept.request("POST", "/v2/models/m/infer", BODY)  # over the connection from before
        answer = kept.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        assert server.post("/v2/models/m/infer", BODY).headers["connection"] == "close"
        assert server.process.wait(30) == 0
        assert 2 <= time.monotonic() - begin < 20


def test_a_second_signal_and_ctrl_c_end_it_without_waiting(tmp_path):
    for signals in ((signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)):
        with light(tmp_path, "--drain", "60") as server:
            for number in signals:
                server.process.send_signal(number)
                time.sleep(0.3)
            assert server.process.wait(20) == 0


def test_idle_grpc_clients_are_told_to_go_away(tmp_path):
    with light(tmp_path, "--drain", "0", grpc=True) as server:
        with socket.create_connection(("127.0.0.1", server.grpc_port)) as connection:
            connection.settimeout(20)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            received = b""
            while found := connection.recv(1 << 16):
                received += found
                if b"\x00\x00\x08\x06\x00" in received:  # it asks whether that has arrived
                    connection.close()
                    break
        kinds = []
        while len(received) >= 9:
            kinds.append(received[3])
            received = received[9 + int.from_bytes(received[:3], "big") :]
        assert 7 in kinds  # GOAWAY
        assert server.process.wait(30) == 0


@WAYS
@pytest.mark.parametrize("before", [True, False], ids=["sent before", "sent while it drains"])
def test_pipelined_requests_are_all_answered(tmp_path, options, before):
    """The last answer says that the connection ends, and none before it."""
    request = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    with light(tmp_path, "--model=m=/light/300/1", "--drain", "3", *options) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(20)
            if before:
                connection.sendall(request * 3)
                time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.get("/v2/health/ready").status_code == 503, 2)
            if not before:
                connection.sendall(request * 3)
            received = b""
            while found := connection.recv(1 << 16):
                received += found
        answers = received.split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"200"] * 3
        assert [b"connection: close" in answer for answer in answers] == [False, False, True]
        assert server.process.wait(30) == 0


@WAYS
def test_a_client_that_has_connected_is_still_answered(tmp_path, options):
    with light(tmp_path, "--drain", "0", *options) as server:
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.4)  # it listens no more, or will not for long
        for connection in connections:
            connection.settimeout(20)
            head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
            connection.sendall(head + BODY)
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
        assert server.process.wait(30) == 0
