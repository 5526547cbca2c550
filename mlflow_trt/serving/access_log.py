"""What each request leaves in the log: one JSON line, with an id that the client knows too.

Where only refused requests leave one, a client that is refused again and again must not fill the disk: of many in a
second the rest are counted.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from functools import lru_cache
from typing import Any

from . import logs

HEADER = "x-request-id"
"""Of HTTP, and gRPC's metadata, in a request and in its answer."""
NAME = "mlflow_trt.access"

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_made = itertools.count(1)
_prefix = secrets.token_hex(8)
_SHOWN = 200
"""Characters of a path."""
_MOST = 20
"""Lines of refused requests in a second, where others leave none."""
_SECOND = 1.0
_logger = logging.getLogger(NAME)


def request_id(given: str | None) -> str:
    """The id of a request: the client's, if it gave one of 1 to 128 visible ASCII characters, or else a new one."""
    return given if given is not None and _ID.fullmatch(given) else f"{_prefix}-{next(_made):x}"


@lru_cache(maxsize=256)
def _shared(level: str, protocol: str, method: str, path: str, status: int | str, client: Any) -> str:
    """What the lines of like requests share."""
    message = {"level": level, "logger": NAME, "message": f"{method} {path} {status}", "protocol": protocol}
    return logs.members({**message, "method": method, "path": path, "status": status, "client": client})


class AccessLog:
    """Writes the lines.

    Args:
        enabled: Whether requests that were answered well leave one. If not, refused and failed ones still do, at most
            20 in a second, and one line tells how many more there were.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._refused = 0
        """In this second."""

    def answered(
        self,
        *,
        protocol: str,
        method: str,
        path: str,
        status: int | str,
        refused: bool,
        request_id: str,
        client: Any,
        seconds: float,
        quiet: bool = False,
        **more: Any,
    ) -> None:
        """Writes a request's line.

        Args:
            protocol: ``"http"`` or ``"grpc"``.
            method: HTTP's, or ``"POST"``.
            path: What was asked for.
            status: HTTP's or gRPC's.
            refused: Whether that is an error.
            request_id: From :func:`request_id`.
            client: Its address.
            seconds: From its head to the end of its answer.
            quiet: Whether it asks all the time, as probes do: answered well it leaves a line at the level debug only.
            more: Further fields.
        """
        if not self._enabled and (not refused or self._is_flood()):
            return
        level, number = ("warning", 30) if refused else ("debug", 10) if quiet else ("info", 20)
        if _logger.isEnabledFor(number):
            path = path if len(path) <= _SHOWN else path[:_SHOWN] + "…"
            own = {"request_id": request_id, "seconds": round(seconds, 6), **more}
            logs.write(_shared(level, protocol, method, path, status, client), own)

    def _is_flood(self) -> bool:
        """Counts a refused request, and answers whether its line is left out."""
        self._refused += 1
        if self._refused == 1:
            asyncio.get_running_loop().call_later(_SECOND, self._end_second)
        return self._refused > _MOST

    def _end_second(self) -> None:
        more, self._refused = self._refused - _MOST, 0
        if more > 0:
            extra = {"event": "refusals_not_logged", "count": more}
            _logger.warning("%d more requests were refused within a second", more, extra=extra)
