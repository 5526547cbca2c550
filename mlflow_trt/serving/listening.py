"""How a process listens for HTTP: its event loop, its memory, its socket, and uvicorn without its own signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import socket
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import StoreError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BACKLOG = 2048


def tune_process() -> None:
    """Prepares a process for many short requests with large bodies, in several threads.

    A thread that comes back from the GPU waits for the interpreter as long as the event loop computes, by default up to
    5 ms, and several times in each call of an engine. And glibc maps and unmaps bodies of megabytes every time, page by
    page, unless it is told to keep what is freed.
    """
    sys.setswitchinterval(0.0002)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def settle() -> None:
    """Has the collector leave alone what was made so far, once all is imported and loaded.

    It stays, and looking at it again would hold up requests.
    """
    gc.collect()
    gc.freeze()


def new_loop() -> asyncio.AbstractEventLoop:
    """Returns an event loop, uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Args:
        host: An address of this machine, or a name of one.
        port: Of TCP; 0: any that is free.

    Raises:
        StoreError: The address can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        raise StoreError(
            f"{host}:{port} can't be listened on: {error.strerror or error}.",
            "a free port and an address of this machine",
            "choose another --port or --host, or end what listens there",
        ) from error
    return found


def http_server(app: Any, timeout: float) -> Any:
    """Returns uvicorn's server for an application.

    Args:
        app: It.
        timeout: Seconds that running requests get when the server ends.
    """
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="auto",  # httptools, where it is installed
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(int(timeout), 1),
            backlog=_BACKLOG,
        )
    )
    # uvicorn's own handling ends the process by the signal once more: a server that was told to end has not failed.
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    return server


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield
