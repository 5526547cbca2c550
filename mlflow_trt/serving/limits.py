"""What a server takes from outside at most: a deadline, a size or a count for everything, and the range of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

_SECONDS = (0.001, 1e6)
_BYTES = (1 << 10, math.inf)

RANGES: Mapping[str, tuple[float, float]] = {
    "port": (0, 65535),
    "grpc_port": (0, 65535),
    "interval": _SECONDS,
    "timeout": _SECONDS,
    "drain": (0, 1e6),
    "max_body": _BYTES,
    "http_processes": (0, 1024),
    "max_contexts": (1, 1024),
    "memory_limit": (1, math.inf),
    "delay": (0, 3600),
    "max_queue": (1, 1_000_000),
    "max_header": _BYTES,
    "max_connections": (1, 1_000_000),
    "max_unsent": _BYTES,
    "header_timeout": _SECONDS,
    "body_timeout": _SECONDS,
    "idle_timeout": _SECONDS,
    "write_timeout": _SECONDS,
}
"""The least and the most of each of the server's numbers; times are seconds and sizes bytes."""


@dataclass(frozen=True)
class Limits:
    """What an HTTP connection may take.

    Raises:
        SettingError: One of them is out of its range.
    """

    max_header: int = 64 << 10
    """Bytes of a request's line and headers, and of what may follow a chunked body."""
    max_connections: int = 1000
    """Connections that are open at once; beyond them only probes are answered."""
    max_unsent: int = 1 << 30
    """Bytes of answers that clients have not taken yet; beyond them whoever stood still longest is cut off."""
    header_timeout: float = 10.0
    """Seconds from a request's first byte to the end of its headers."""
    body_timeout: float = 30.0
    """Seconds in which a body must be there, or :data:`LEAST` more of it."""
    idle_timeout: float = 75.0
    """Seconds that a connection may be open without a request."""
    write_timeout: float = 30.0
    """Seconds in which a client must have taken an answer, or :data:`LEAST` more of it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(field.name, getattr(self, field.name))


LEAST = 1 << 20
"""Bytes. A client that moves less within a deadline holds a connection and memory for nothing."""

CUTS = ("header_bytes", "header_time", "idle_time", "connections", "write_time", "unsent_bytes")
"""Why connections are refused or cut off: the values of a metric's label."""


def check_number(name: str, value: float | None) -> None:
    """Checks that one of the server's numbers is in its range.

    Raises:
        SettingError: It is not, or is no number.
    """
    low, high = RANGES[name]
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        from ..errors import SettingError  # which imports MLflow: too slow for who only asks for help

        expected = f"a number from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        raise SettingError(f"{name} is {value}.", expected, "give another number")


def check_secret(what: str, secret: str | None) -> None:
    """Checks that a secret is none or really one: an empty one would let everybody in.

    Raises:
        SettingError: It is empty, or has characters that no header can carry.
    """
    if secret is None or (secret.strip() and secret.isprintable()):
        return
    from ..errors import SettingError

    raise SettingError(
        f"{what} is empty." if not secret.strip() else f"{what} has control characters, or more than one line.",
        "a secret in one line",
        "write one there, or don't ask for one at all",
    )


def check_token(token: str | None) -> None:
    """Checks that a bearer token is none, or one that clients can send.

    Raises:
        SettingError: It is no secret, see :func:`check_secret`, or does not arrive as it is sent: a header carries no
            spaces at its ends, and characters beyond ASCII in as many encodings as there are clients.
    """
    check_secret("The bearer token", token)
    if token is None or (token.isascii() and token == token.strip()):
        return
    from ..errors import SettingError

    raise SettingError(
        f"The bearer token has {'spaces at its ends' if token.isascii() else 'characters beyond ASCII'}.",
        "printable ASCII, as every client can send it in a header",
        "make another token",
    )
