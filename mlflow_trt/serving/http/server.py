"""uvicorn's server with limited connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from ..limits import Limits
from ..shutdown import Shutdown
from .connection import Connection
from .connection_guard import ConnectionGuard

if TYPE_CHECKING:
    from ..metrics import Metrics

_BACKLOG = 2048


class HttpServer(uvicorn.Server):
    """uvicorn's server, whose connections have limits, and which leaves signals alone.

    Args:
        app: The ASGI application.
        limits: What connections may take.
        timeout: Seconds that running requests get when the server ends.
        shutdown: The server's end.
        metrics: Where connections that are refused or cut off are counted.
    """

    def __init__(self, app: Any, limits: Limits, timeout: float, shutdown: Shutdown, metrics: Metrics) -> None:
        self.guard = ConnectionGuard(limits, shutdown, metrics)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, self.guard),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=limits.idle_timeout,  # type: ignore[arg-type]
                timeout_graceful_shutdown=max(int(timeout), 1),
                backlog=_BACKLOG,
            )
        )
        self.guard.connections = self.server_state.connections  # type: ignore[assignment]

    async def serve(self, sockets: Any = None) -> None:
        """uvicorn's."""
        watching = asyncio.ensure_future(self.guard.run())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()

    async def shutdown(self, sockets: Any = None) -> None:
        """uvicorn's."""
        self.guard.closing = True
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own ends the process by the signal once more: a server that was told to end has not failed."""
        yield

    def connection(self) -> Connection:
        """What uvicorn makes for a connection that it accepts itself."""
        return self.config.http_protocol_class(  # type: ignore[return-value]
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self.server_state.connections)
