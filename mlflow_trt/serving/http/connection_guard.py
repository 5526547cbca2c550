"""What looks after all HTTP connections of a process: deadlines, how many there are, and what waits to be sent."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..access_log import AccessLog
from ..limits import Limits
from ..shutdown import Shutdown

if TYPE_CHECKING:
    from ..metrics import RequestMetrics
    from .connection import Connection

_logger = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at all connections; less where a deadline is short."""
_SPARE = 32
"""Connections beyond the limit that may ask, for probes; the newest ones."""
_REPORT = 10.0
"""Seconds between two lines of the log about connections that were cut off."""

Refusal = tuple[int, str, str]
"""HTTP's status, what the client is told, and which limit it was (``""``: none)."""


class ConnectionGuard:
    """Looks after the connections of a process.

    Args:
        limits: What they may take.
        shutdown: The server's end.
        metrics: Where connections that are refused or cut off are counted.
    """

    def __init__(self, limits: Limits, shutdown: Shutdown, metrics: RequestMetrics) -> None:
        self.limits = limits
        self.shutdown = shutdown
        self.connections: set[Connection] = set()
        self.spare: dict[Connection, None] = {}
        """Those beyond the limit, oldest first."""
        self.closing = False
        """Whether no further connections are to come."""
        self._metrics = metrics
        self._log = AccessLog(False)
        self._counted: Counter[str] = Counter()
        self._reported = float("-inf")

    def count(self, limit: str) -> None:
        """Counts a connection that is refused or cut off."""
        self._metrics.cut(limit)
        if limit != "idle_time":  # that is how most connections end
            self._counted[limit] += 1

    def refused(self, status: int, *, method: str, path: str, request_id: str, client: Any, seconds: float) -> None:
        """Counts a request that was refused before the application saw it, and leaves its line in the log."""
        self._metrics.other("refused", "http", status)
        self._log.answered(
            protocol="http",
            method=method,
            path=path,
            status=status,
            refused=True,
            request_id=request_id,
            client=client,
            seconds=seconds,
        )

    def take_spare(self, connection: Connection) -> None:
        """Takes a connection beyond the limit, and refuses the oldest such one if they are too many."""
        self.spare[connection] = None
        if len(self.spare) > _SPARE:
            oldest = next(iter(self.spare))
            del self.spare[oldest]
            oldest.refuse(*self.too_many())
            oldest.close()

    def too_many(self) -> Refusal:
        """What a client beyond the limit gets."""
        return (503, f"{self.limits.max_connections} connections are open, which is the limit.", "connections")

    def drain(self) -> None:
        """Has all answers from now on say that their connection ends."""
        for connection in self.connections:
            connection.announce_end()

    async def run(self) -> None:
        """Looks at them for as long as it is not cancelled."""
        limits = self.limits
        shortest = min(limits.header_timeout, limits.idle_timeout, limits.write_timeout)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_LOOK, shortest / 4))
            self._look(loop.time())

    def _look(self, now: float) -> None:
        unsent = {connection: connection.look(now) for connection in list(self.connections)}
        too_many = sum(unsent.values()) - self.limits.max_unsent
        if too_many > 0:
            for connection in sorted((each for each, held in unsent.items() if held), key=lambda each: each.since):
                connection.cut("unsent_bytes")
                too_many -= unsent[connection]
                if too_many <= 0:
                    break
        if self._counted and now - self._reported >= _REPORT:
            extra = {"event": "connections_cut", "limits": dict(self._counted), "open": len(self.connections)}
            _logger.warning("Connections were refused or cut off", extra=extra)
            self._counted.clear()
            self._reported = now
