"""A server of limited HTTP connections."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from ..._uvicorn import Server
from ..config import ServerConfig
from ..shutdown import Shutdown
from .connection import Connection
from .connection_guard import ConnectionGuard

if TYPE_CHECKING:
    from ..metrics import RequestMetrics

_BACKLOG = 2048


class HttpServer(Server):
    """uvicorn's server, whose connections have limits.

    Args:
        app: The ASGI application.
        config: How the server serves: what connections may take, and how long running requests get when it ends.
        shutdown: The server's end.
        metrics: Where connections that are refused or cut off are counted.
    """

    def __init__(self, app: Any, config: ServerConfig, shutdown: Shutdown, metrics: RequestMetrics) -> None:
        self.guard = ConnectionGuard(config.limits, shutdown, metrics)
        super().__init__(
            app,
            partial(Connection, self.guard),
            idle_timeout=config.limits.idle_timeout,
            timeout=config.timeout,
            backlog=_BACKLOG,
        )
        self.guard.connections = self.connections

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

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self.connections)
