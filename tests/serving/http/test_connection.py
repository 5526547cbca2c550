"""What a client may do with a connection, and for how long: real sockets, real clients, a server of its own.

The server's models are stand-ins (``light.py``); the deadlines are short, so that waiting for them is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import requests

from mlflow_trt.serving.http import connection as connection_module

from ..light import light, until
from ..running import Served, counted, lines_of
from .raw_client import ANSWER, BODY, LENGTH, connect, cuts, data, head, is_closed, response

pytestmark = [pytest.mark.xdist_group("connections"), pytest.mark.timeout(180)]
SHORT = ("--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2", "--write-timeout", "1")


@pytest.fixture(scope="module", params=[(), ("--http-processes", "1")], ids=["one process", "HTTP workers"])
def server(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = ("--model=m=/light/0/1", f"--model=wide=/light/0/{4 << 20}", "--model=slow=/light/1500/1")
    with light(tmp_path_factory.mktemp("light"), *models, *SHORT, *request.param) as found:
        yield found


# --- an offer's headers ---


@pytest.mark.parametrize(
    ("headers", "lines"),
    [
        ([], []),
        ([(b"host", b"x"), (b"upgrade", b"h2c")], [b"host: x"]),
        ([(b"connection", b"Upgrade, HTTP2-Settings"), (b"a", b"b")], [b"connection: ", b"a: b"]),
        ([(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"websocket")], [b"connection: keep-alive"]),
        ([(b"connection", b"close,UPGRADE, x")], [b"connection: close, x"]),
        ([(b"http2-settings", b"AAE")], [b"http2-settings: AAE"]),
    ],
)
def test_of_an_offer_s_headers_all_but_the_offer_stays(headers, lines):
    assert list(connection_module._lines(headers)) == [line + b"\r\n" for line in lines]


def test_what_a_client_s_system_has_not_confirmed_is_none_where_nothing_tells():
    transport = SimpleNamespace(get_extra_info=lambda name: None)
    assert connection_module._in_kernel(transport) == 0


# --- offers to switch to HTTP/2 ---


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA")


@pytest.mark.parametrize("pieces", [1, 7, 1000], ids=["at once", "in sevens", "bytewise"])
def test_an_offer_of_http2_is_ignored_and_the_connection_goes_on(server, pieces):
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            sent = head(*OFFER) + BODY
            size = -(-len(sent) // pieces)
            for begin in range(0, len(sent), size):
                connection.sendall(sent[begin : begin + size])
            status, headers, body = response(connection)
            assert (status, data(body)) == (200, ANSWER)
            assert "upgrade" not in headers
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(OFFER).encode() + b"\r\n\r\n")
        assert response(connection)[0] == 200


def test_an_offer_with_a_chunked_body_and_pipelined_requests(server):
    chunked = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    chunked += "\r\n".join(OFFER).encode() + b"\r\n\r\n%x\r\n" % 10 + BODY[:10] + b"\r\n"
    chunked += b"%x\r\n" % (len(BODY) - 10) + BODY[10:] + b"\r\n0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall((chunked + head(*OFFER) + BODY) * 2)
        for _ in range(4):
            status, _, body = response(connection)
            assert (status, data(body)) == (200, ANSWER)


def test_an_offer_does_not_keep_a_connection_that_is_to_be_closed(server):
    with connect(server) as connection:
        connection.sendall(head("Connection: Upgrade, HTTP2-Settings, close", *OFFER[1:]) + BODY)
        status, headers, body = response(connection)
        assert (status, data(body), headers["connection"]) == (200, ANSWER, "close")
        assert is_closed(connection)


def test_connect_is_refused(server):
    with connect(server) as connection:
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert response(connection)[0] == 405


def test_curl_may_offer_http2(server):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    url = f"{server.url}/v2/models/m/infer"
    command = ["curl", "-sS", "--http2", "--data-binary", "@-", url, "--next", "-sS", "--http2", url, "-d", BODY]
    done = subprocess.run([*command, "--max-time", "20"], input=BODY, capture_output=True, timeout=60)
    assert done.stdout.count(b'"data":[10.0]') == 2, done


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 4; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


def test_javas_own_client_works_as_it_is(server, tmp_path):
    if shutil.which("java") is None:
        pytest.skip("needs Java 11 or later")
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", str(source)]
    done = subprocess.run(
        [*command, f"{server.url}/v2/models/m/infer", BODY.decode()], capture_output=True, text=True, timeout=120
    )
    if "not found in module" in done.stderr or "jdk.compiler" in done.stderr:
        pytest.skip("needs Java with its compiler")
    assert done.stdout.count("200 {") == done.stdout.count('"data":[10.0]') == 4, done


# --- sizes ---


def test_an_endless_header_is_refused_at_once(server):
    before = cuts(server, "header_bytes")
    with connect(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nX: ")
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(150):
                connection.sendall(b"y" * (1 << 20))
        assert server.get("/v2/health/live").elapsed.total_seconds() < 1
        assert time.monotonic() - begin < 10
        assert is_closed(connection)
    until(lambda: cuts(server, "header_bytes") == before + 1)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"y" * (80 << 10),
        b"GET / HTTP/1.1\r\nX: " + b"y" * (80 << 10),
        b"GET / HTTP/1.1\r\nX: " + b"y" * (80 << 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"y" * (80 << 10),
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (16 << 10),
        b"\r\n" * (40 << 10),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * (600 << 10),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: " + b"y" * (600 << 10),
    ],
    ids=["path", "value", "whole", "name", "many", "empty lines", "chunk's extension", "trailer"],
)
def test_whatever_is_no_body_has_a_limit(server, sent):
    with connect(server) as connection:
        for begin in range(0, len(sent), 10_000):
            connection.sendall(sent[begin : begin + 10_000])
            time.sleep(0.002)
        status, headers, body = response(connection)
        assert (status, headers["connection"]) == (431, "close")
        assert "65,536 bytes" in json.loads(body)["error"]
        assert is_closed(connection)


def test_large_headers_within_the_limit_and_tiny_chunks_are_answered(server):
    with connect(server) as connection:
        connection.sendall(head(f"X: {'y' * (60 << 10)}") + BODY)
        assert response(connection)[0] == 200
        chunked = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        padded = b" " * (32 << 10) + BODY
        connection.sendall(chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n")
        status, _, body = response(connection)
        assert (status, data(body)) == (200, ANSWER)


def test_what_is_refused_before_it_is_read_has_its_line_and_is_counted(server):
    refused = 'mlflow_trt_other_requests_total{protocol="http",route="refused",status="431"}'
    before = counted(server).get(refused, 0)
    with connect(server) as connection:
        connection.sendall(head("X-Request-ID: too-long", "X: " + "a" * (65 << 10)))
        status, headers, _ = response(connection)
    assert status == 431
    (line,) = until(lambda: lines_of(server, headers["x-request-id"]))
    found = [line[key] for key in ("logger", "protocol", "method", "path", "status", "client")]
    assert found == ["mlflow_trt.access", "http", "POST", "/v2/models/m/infer", 431, "127.0.0.1"]
    until(lambda: counted(server).get(refused, 0) == before + 1)


def test_an_answer_that_is_under_way_is_given_before_what_follows_is_refused(server):
    with connect(server) as connection:
        connection.sendall(head(path="/v2/models/slow/infer") + BODY)
        connection.sendall(b"GET / HTTP/1.1\r\nX-Request-ID: behind\r\nX: " + b"y" * (600 << 10))
        status, headers, body = response(connection)
        assert (status, data(body), headers["connection"]) == (200, ANSWER, "close")
        assert is_closed(connection)
    (line,) = until(lambda: lines_of(server, "behind"))
    assert (line["status"], line["method"], line["path"]) == (431, "GET", "/")


def test_requests_before_a_broken_one_are_answered(server):
    """The third one's body is broken while the second one waits for the first."""
    with connect(server) as connection:
        connection.sendall(head(path="/v2/models/slow/infer") + BODY + head() + BODY)
        connection.sendall(head("Transfer-Encoding: chunked", "X-Request-ID: third").replace(LENGTH, b"") + b"nonsense")
        begin = time.monotonic()
        assert [response(connection)[0], response(connection)[0]] == [200, 200]
        assert is_closed(connection)
        assert time.monotonic() - begin < 10
    (line,) = until(lambda: lines_of(server, "third"))
    assert (line["status"], line["path"]) == (400, "/v2/models/m/infer")


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/invocations", "/v2/nothing/else"])
def test_a_body_whose_rest_is_broken_is_logged_and_counted_as_it_was_answered(server, path):
    identifier = f"broken{path.replace('/', '-')}"
    with connect(server) as connection:
        request = head("Transfer-Encoding: chunked", f"X-Request-ID: {identifier}", path=path).replace(LENGTH, b"")
        connection.sendall(request + b"2\r\n{}\r\n")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            connection.sendall(b"nonsense")
        status, headers, _ = response(connection)
        assert headers["x-request-id"] == identifier
        assert connection.recv(1) == b""  # one answer, not two
    (line,) = until(lambda: lines_of(server, identifier))
    assert line["status"] == status
    assert not any('status="499"' in key for key in counted(server))


# --- deadlines ---


@pytest.mark.parametrize("dripping", [False, True])
def test_half_a_header_is_not_waited_for(server, dripping):
    before = cuts(server, "header_time")
    with connect(server) as connection:
        begin = time.monotonic()
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nX: ")
        connection.settimeout(0.1)
        received = b""
        while time.monotonic() - begin < 10:
            with contextlib.suppress(socket.timeout):
                received = connection.recv(1000)
                break
            if dripping:
                connection.sendall(b"y")
        assert 0.9 < time.monotonic() - begin < 5
        assert received.startswith(b"HTTP/1.1 408 ")
        connection.settimeout(5)
        assert is_closed(connection)
    until(lambda: cuts(server, "header_time") == before + 1)
    until(lambda: any("connections_cut" in line for line in server.lines()))


@pytest.mark.parametrize("begun", [False, True], ids=["nothing of it", "some of it"])
def test_a_body_that_stands_still_gets_408(server, begun):
    with connect(server) as connection:
        connection.sendall(head(length=1000) + (BODY if begun else b""))
        begin = time.monotonic()
        status, headers, _ = response(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert 0.9 < time.monotonic() - begin < 5
    lines = server.get("/metrics").text
    assert 'mlflow_trt_requests_total{model="m",protocol="http",status="408"}' in lines


def test_a_body_that_takes_longer_but_comes_is_read(server):
    """A megabyte in each second: as slow as is allowed, and three times the deadline."""
    body = BODY + b" " * (4 << 20)
    with connect(server) as connection:
        connection.sendall(head(length=len(body)))
        begin = time.monotonic()
        for start in range(0, len(body), 1 << 18):
            connection.sendall(body[start : start + (1 << 18)])
            time.sleep(0.15)
        assert time.monotonic() - begin > 2
        assert response(connection)[0] == 200


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_an_idle_connection_is_closed(server, used):
    with connect(server) as connection:
        if used:
            connection.sendall(head() + BODY)
            assert response(connection)[0] == 200
        begin = time.monotonic()
        assert connection.recv(1) == b""
        assert 1.5 < time.monotonic() - begin < 8


def test_a_body_that_nobody_reads_does_not_keep_a_connection_open(server):
    with connect(server) as connection:
        connection.sendall(head(path="/v2/models/nobody/infer", length=1 << 20))
        assert response(connection)[0] == 404
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 15:
                connection.sendall(b" ")
                time.sleep(0.1)
        assert time.monotonic() - begin < 10


def test_clients_that_do_not_read_are_cut_off(server):
    before = cuts(server, "write_time")
    with contextlib.ExitStack() as clients:
        opened = [clients.enter_context(connect(server)) for _ in range(4)]
        binary = BODY[:-1] + b',"parameters":{"binary_data_output":true}}'
        for connection in opened:
            connection.sendall(head(path="/v2/models/wide/infer", length=len(binary)) + binary)
        until(lambda: cuts(server, "write_time") == before + 4)
        for connection in opened:
            assert is_closed(connection)
    assert server.alive()


def test_a_client_that_reads_slowly_gets_everything(server):
    binary = BODY[:-1] + b',"parameters":{"binary_data_output":true}}'
    with connect(server) as connection:
        connection.sendall(head(path="/v2/models/wide/infer", length=len(binary)) + binary)
        received = 0
        begin = time.monotonic()
        while received < 16 << 20:
            found = connection.recv(1 << 19)
            assert found
            received += len(found)
            time.sleep(len(found) / (4 << 20))
        assert time.monotonic() - begin > 3


# --- in the end ---


def test_requests_over_many_connections_leave_nothing_behind(server):
    with requests.Session() as session:
        for _ in range(50):
            assert session.post(f"{server.url}/v2/models/m/infer", BODY, timeout=20).status_code == 200
    for _ in range(20):
        assert server.post("/v2/models/m/infer", BODY).status_code == 200
