"""How a process listens for HTTP: its event loop, its memory, its descriptors, and the sockets that it listens on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator

from ...errors import StoreError

_logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BACKLOG = 2048
_OTHERS = 128
"""Descriptors that a process needs for what is no connection of a client: models, the registry, gRPC, probes."""
_SO_ATTACH_FILTER = 26
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""A filter of Linux: load byte 13 of TCP's header; if its bit SYN is set, take no byte of the packet; else take all."""
_LAST_DATA_RECEIVED = 52
"""Where Linux's ``struct tcp_info`` has the milliseconds since data came last."""


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
        with contextlib.ExitStack() as on_failure:
            listening = on_failure.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
            on_failure.pop_all()
    except (OSError, UnicodeError) as error:  # the second: a name that no DNS could have
        raise StoreError(
            f"{host}:{port} can't be listened on: {getattr(error, 'strerror', None) or error}.",
            "a free port and an address of this machine",
            "choose another --port or --host, or end what listens there",
        ) from error
    return listening


def affordable(connections: int) -> int:
    """Returns how many connections this process can have, and sees to it that it gets as many descriptors as it may.

    Args:
        connections: How many are wanted.
    """
    try:
        import resource
    except ImportError:  # there is none for Windows
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    possible = max(soft - _OTHERS, soft // 4, 1)
    _logger.warning(
        "A process may open %d files here (ulimit -n), so it takes %d connections, not %d",
        *(soft, possible, connections),
        extra={"event": "few_descriptors"},
    )
    return possible


def refuse_new(listening: socket.socket) -> None:
    """Has the system take no further connection, while those that it has already can still be accepted.

    To close a socket that listens resets what waits to be accepted, whose clients believe that they are connected. Once
    nothing new comes, it can be closed without loss: a client that comes meanwhile is refused when it is closed. Where
    the system has no such filters, a few clients may be reset.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    described = struct.pack("HL", len(_NO_SYN), ctypes.addressof(program))
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def sockets_at(port: int) -> Iterator[socket.socket]:
    """Finds this process's TCP sockets at a port of its own, for a library that does not show them; Linux only.

    Args:
        port: The port, where a socket listens or at which clients are connected.

    Yields:
        A second handle of each, which is closed when the next one is asked for.
    """
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as tcp_socket:
                if tcp_socket.family in (socket.AF_INET, socket.AF_INET6) and tcp_socket.getsockname()[1] == port:
                    yield tcp_socket


def is_listening(tcp_socket: socket.socket) -> bool:
    """Whether a socket takes connections."""
    return bool(tcp_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def heard_within(connection: socket.socket, seconds: float) -> bool:
    """Whether a connection's client has sent something lately; Linux only."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
    return int(struct.unpack_from("I", told, _LAST_DATA_RECEIVED)[0]) < seconds * 1000
