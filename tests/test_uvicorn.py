"""What is private to uvicorn and used here is still there; a uvicorn that has moved it fails here by name."""

from __future__ import annotations

import ast
import asyncio
import socket
from pathlib import Path

import pytest

import mlflow_trt

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

from mlflow_trt import _uvicorn  # noqa: E402

PACKAGE = Path(mlflow_trt.__file__).parent


class Asked:
    """A server with one connection, whose only request is being answered."""

    def __init__(self) -> None:
        self.protocols: list[_uvicorn.HttpProtocol] = []
        self.served = asyncio.Event()
        self.go_on = asyncio.Event()
        self.server = _uvicorn.Server(self, self._make, idle_timeout=5.0, timeout=1.0, backlog=1)

    def _make(self, **arguments):
        self.protocols.append(_uvicorn.HttpProtocol(**arguments))
        return self.protocols[-1]

    async def __call__(self, scope, receive, send):
        self.served.set()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def ask(check):
    """Has a request answered, and calls ``check`` with the server and the connection meanwhile."""

    async def run():
        asked = Asked()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(asked.server.serve([listening]))
            while not asked.server.started:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
            await asyncio.wait_for(asked.served.wait(), 10)
            try:
                check(asked.server, asked.protocols[0])
            finally:
                asked.go_on.set()
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 204")
            writer.close()
            asked.server.should_exit = True
            await asyncio.wait_for(serving, 10)

    asyncio.run(run())


def test_a_connection_has_what_is_used_of_it():
    def check(server, protocol):
        missing = [name for name in _uvicorn.HttpProtocol.__annotations__ if not hasattr(protocol, name)]
        missing += [name for name in ("url", *METHODS) if not hasattr(protocol, name)]
        assert not missing

    ask(check)


METHODS = ("on_headers_complete", "on_body", "on_message_complete", "shutdown", "timeout_keep_alive_handler")
METHODS += ("resume_writing", "connection_lost", "data_received", "_unset_keepalive_if_required")


def test_a_request_s_cycle_has_what_is_used_of_it():
    def check(server, protocol):
        assert not [name for name in _uvicorn.CYCLE if not hasattr(protocol.cycle, name)]
        assert protocol.cycle.scope["state"] is not None
        assert (protocol.cycle.response_started, protocol.cycle.response_complete) == (False, False)

    ask(check)


def test_the_server_knows_its_connections_and_makes_further_ones():
    def check(server, protocol):
        assert server.connections == {protocol}
        assert server.connections is protocol.connections
        assert isinstance(server.connection(), _uvicorn.HttpProtocol)

    ask(check)


def test_refusals_have_their_status_lines():
    assert {_uvicorn.STATUS_LINE[status][:12] for status in (400, 405, 408, 431, 503)} == {
        b"HTTP/1.1 " + str(status).encode() for status in (400, 405, 408, 431, 503)
    }


def test_no_other_file_touches_uvicorn():
    touching = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            touching += [path.name for name in names if name.partition(".")[0] in ("uvicorn", "h11")]
    assert set(touching) == {"_uvicorn.py"}
