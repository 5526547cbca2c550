"""A body that arrives in many pieces, over real sockets."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
import requests

from ..light import light, until
from ..running import Served
from .raw_client import LENGTH, connect, head, is_closed, response

pytestmark = pytest.mark.timeout(120)

MOST = 4 << 20


@pytest.fixture(scope="module", params=[(), ("--http-processes", "1")], ids=["one process", "HTTP workers"])
def server(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with light(tmp_path_factory.mktemp("light"), "--max-body", str(MOST >> 20), *request.param) as found:
        yield found


def request(rows: int, seed: int) -> tuple[bytes, int, np.ndarray]:
    """A body of so many rows as binary data, the length of its JSON, and what is right."""
    x = np.random.default_rng(seed).integers(-99, 99, (rows, 4)).astype(np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "parameters": {"binary_data_size": x.nbytes}}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [entry], "outputs": outputs}).encode()
    return text + x.tobytes(), len(text), x.sum(axis=1)


def answer(connection: socket.socket) -> np.ndarray:
    status, headers, body = response(connection)
    assert status == 200, body
    return np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.float32)


def chunked_head(*lines: str) -> bytes:
    return head("Transfer-Encoding: chunked", *lines).replace(LENGTH, b"")


def pieces(body: bytes, seed: int) -> Iterator[bytes]:
    sizes, begin = random.Random(seed), 0
    while begin < len(body):
        size = sizes.choice((1, 700, 64 << 10, 300 << 10))
        yield body[begin : begin + size]
        begin += size


@pytest.mark.parametrize("chunked", [False, True])
def test_no_piece_is_lost_or_moved(server, chunked):
    with connect(server) as connection:
        for seed in range(4):
            body, length, right = request(200_000 + seed, seed)
            line = f"Inference-Header-Content-Length: {length}"
            connection.sendall(chunked_head(line) if chunked else head(line, length=len(body)))
            for number, piece in enumerate(pieces(body, seed)):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                time.sleep(0.01 * (number % 3 == 0))
            if chunked:
                connection.sendall(b"0\r\n\r\n")
            np.testing.assert_array_equal(answer(connection), right)


def test_what_follows_a_large_body_is_another_request(server):
    first, second = request(150_000, 1), request(3, 2)
    with connect(server) as connection:
        for body, length, _ in (first, second, first):
            connection.sendall(head(f"Inference-Header-Content-Length: {length}", length=len(body)) + body[:-9])
            time.sleep(0.05)
            connection.sendall(body[-9:])
        for _, _, right in (first, second, first):
            np.testing.assert_array_equal(answer(connection), right)


def test_a_body_that_grows_beyond_the_limit_is_refused_at_once(server):
    piece = b"%x\r\n%b\r\n" % (1 << 18, bytes(1 << 18))
    with connect(server) as connection:
        connection.sendall(chunked_head())
        for _ in range(MOST // (1 << 18)):
            connection.sendall(piece)
            time.sleep(0.005)
        connection.sendall(piece)
        status, headers, body = response(connection)
        assert (status, headers["connection"]) == (413, "close")
        assert f"{MOST:,} bytes" in json.loads(body)["error"]
        assert is_closed(connection)


def test_a_client_that_leaves_amid_its_body_leaves_nothing_behind(server):
    body, length, _ = request(200_000, 3)
    with connect(server) as connection:
        connection.sendall(
            head(f"Inference-Header-Content-Length: {length}", length=len(body)) + body[: len(body) // 2]
        )
        assert until(lambda: in_flight(server) >= 1)
    # Asking counts as one too. HTTP workers tell now and then how many they have, most often none at that moment.
    assert until(lambda: 'mlflow_trt_requests_total{model="m",protocol="http",status="499"} 1.0\n' in metrics(server))
    assert until(lambda: in_flight(server) <= 1)


def in_flight(server: Served) -> float:
    return float(re.findall(r'requests_in_flight\{protocol="http"\} (\S+)', metrics(server))[0])


def metrics(server: Served) -> str:
    return requests.get(f"http://127.0.0.1:{server.port}/metrics", timeout=20).text
