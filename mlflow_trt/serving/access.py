"""What each request leaves in the log: one JSON line, with an id that the client knows too."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
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
_logger = logging.getLogger(NAME)


def request_id(given: str | None) -> str:
    """The id of a request: the client's, if it gave one of 1 to 128 visible ASCII characters, or else a new one."""
    return given if given is not None and _ID.fullmatch(given) else f"{_prefix}-{next(_made):x}"


class AccessLog:
    """Writes the lines.

    Args:
        enabled: Whether requests that were answered well leave one. Refused and failed ones always do.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

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
        if not refused and not self._enabled:
            return
        level, number = ("warning", 30) if refused else ("debug", 10) if quiet else ("info", 20)
        if _logger.isEnabledFor(number):
            path = path if len(path) <= _SHOWN else path[:_SHOWN] + "…"
            fields = {
                "protocol": protocol,
                "method": method,
                "path": path,
                "status": status,
                "request_id": request_id,
                "client": client,
                "seconds": round(seconds, 6),
            }
            logs.write(level, NAME, f"{method} {path} {status}", {**fields, **more})
