"""A client of the server that writes and reads bytes: what no other client would send."""

from __future__ import annotations

import json
import socket

from ..running import Served, counted

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
ANSWER = [10.0]
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def connect(server: Served) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(20)
    return connection


def head(*lines: str, path: str = "/v2/models/m/infer", length: int = len(BODY)) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", "")).encode()


def response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Reads one response, and nothing of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    status, *lines = head.decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return int(status.split()[1]), headers, body


def data(body: bytes) -> list[float]:
    return json.loads(body)["outputs"][0]["data"]


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection, in whatever way."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def cuts(server: Served, limit: str) -> float:
    return counted(server)[f'mlflow_trt_cut_connections_total{{limit="{limit}"}}']
