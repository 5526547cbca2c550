"""The only file that touches what is private to uvicorn: its HTTP protocol on httptools, and the parts of its server.

Seen in uvicorn 0.53 and 0.54. ``tests/test_uvicorn.py`` finds what a new one no longer has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["STATUS_LINE", "HttpProtocol", "Server"]

CYCLE = (
    "keep_alive", "disconnected", "response_started", "response_complete", "more_body", "message_event", "scope",
    "transport",
)  # fmt: skip
"""What is read or set of a request's cycle, which answers it."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol of one connection, with what is used of it."""

    cycle: Any
    """Answers the request that came last; None: none has come."""
    pipeline: Any
    """Further requests, whose turn has not come."""
    headers: Any
    """Of the request that is being read."""
    parser: Any
    flow: Any
    """Pauses and resumes reading."""
    connections: set[Any]
    """All of the server."""
    transport: Any
    client: Any
    loop: asyncio.AbstractEventLoop
    server_state: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        super().connection_made(cast(asyncio.Transport, transport))

    # The function itself: it is called for each piece of a body.
    stop_keep_alive_timer = HttpToolsProtocol._unset_keepalive_if_required
    """Has the connection not closed for being idle: something came."""


class Server(uvicorn.Server):
    """uvicorn's server with a protocol of the caller's, and which leaves signals alone.

    Args:
        app: The ASGI application.
        protocol: Makes the protocol of a connection of uvicorn's own arguments.
        idle_timeout: Seconds that a connection may be open without a request.
        timeout: Seconds that running requests get when the server ends.
        backlog: Connections that may wait to be accepted.
    """

    def __init__(
        self, app: Any, protocol: Callable[..., HttpProtocol], *, idle_timeout: float, timeout: float, backlog: int
    ) -> None:
        self._protocol = protocol
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=cast(int, idle_timeout),
                timeout_graceful_shutdown=max(int(timeout), 1),
                backlog=backlog,
            )
        )

    @property
    def connections(self) -> set[Any]:
        """Those that are open."""
        return self.server_state.connections

    def connection(self) -> HttpProtocol:
        """What uvicorn makes for a connection that it accepts itself."""
        return self._protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own ends the process by the signal once more: a server that was told to end has not failed."""
        yield
