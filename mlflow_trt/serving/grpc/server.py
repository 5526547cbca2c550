"""The server's gRPC face, in the event loop of the HTTP server: how it starts, and how it ends.

Beside the protocol's own service (:mod:`.methods`) stand the standard health service and reflection
(:mod:`.health`).

A message may have ``max_body`` bytes, before and after decompression. gRPC sees to that; releases before grpcio 1.84
decompress all of it first, however much that is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from ...errors import StoreError
from ..config import ServerConfig
from ..http.listening import heard_within, is_listening, refuse_new, sockets_at
from ..protocol import protobuf
from ..shutdown import Shutdown
from . import health
from .methods import Service

if TYPE_CHECKING:
    from ..metrics import Metrics
    from ..served_model import ServedModel

_logger = logging.getLogger(__name__)

PENDING = 1 << 16
"""Calls that gRPC keeps until they are looked at, in 14 KiB each if they are small. Of up to twice as many it ends some
at random as CANCELLED, and beyond that all."""
IDLE = 10
"""How many times as long as one of HTTP a connection may be idle: gRPC's clients keep theirs, and log an end."""
_INT32 = 2**31 - 1  # gRPC's own limit of a limit
_HOLD = 0.1
"""Seconds without a call after which it counts as quiet, where calls are held and not answered."""
_LONGEST_HOLD = 1.0
"""Seconds that are waited for that."""
_FLUSH = 0.05
"""Seconds until clients know what was just sent."""


async def start(
    models: Mapping[str, ServedModel],
    config: ServerConfig,
    *,
    metrics: Metrics | None = None,
    shutdown: Shutdown | None = None,
) -> GrpcServer:
    """Serves models over gRPC, from the running event loop.

    Args:
        models: By name.
        config: How the server serves. Of its limits gRPC reads how many connections there may be, and how long they
            may be idle, take for their beginning, and leave a ping unanswered. ``grpc_port`` None: any that is free.
        metrics: Where calls are counted.
        shutdown: The server's end; default: it never ends.

    Raises:
        StoreError: The address can't be had.
    """
    host, port, limits = config.host, config.grpc_port or 0, config.limits
    options = (
        ("grpc.max_receive_message_length", min(config.max_body, _INT32)),
        ("grpc.so_reuseport", 0),  # else a second server takes half of the calls, unnoticed
        # By itself gRPC begins at 1000 to end some, and ends all that it kept for 30 s, as CANCELLED.
        ("grpc.server.max_pending_requests", PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING),
        ("grpc.server_max_unrequested_time_in_server", _INT32),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.header_timeout)),
        ("grpc.max_connection_idle_ms", _milliseconds(IDLE * limits.idle_timeout)),
        # Who does not answer these pings is gone, and what waits for it may go too.
        ("grpc.keepalive_time_ms", _milliseconds(limits.idle_timeout)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.write_timeout)),
    )
    server = grpc.aio.server(options=options)
    service = Service(models, config, metrics=metrics, shutdown=shutdown)
    pool = protobuf.new_pool()
    health.describe(pool)
    names = [protobuf.SERVICE, health.SERVICE, health.REFLECTION]
    for name, handlers in (
        (protobuf.SERVICE, service.handlers()),
        (
            health.SERVICE,
            health.Health(service.serving, lambda: service.refusing, service.seen, service.arrived).handlers(),
        ),
        (health.REFLECTION, health.reflection_handlers(names, pool, service.admit)),
    ):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise StoreError(
            f"Nothing listens on {host}:{port} for gRPC: the address can't be had.",
            "a free port and an address of this machine",
            "choose another port or host",
        )
    await server.start()
    _logger.info("Listening", extra={"protocol": "grpc", "host": host, "port": bound})
    return GrpcServer(server, service, bound)


class GrpcServer:
    """A server that runs.

    Args:
        server: gRPC's.
        service: What answers.
        port: Where it listens.
    """

    def __init__(self, server: grpc.aio.Server, service: Service, port: int) -> None:
        self._server = server
        self._service = service
        self.port = port

    async def wait_for_termination(self) -> None:
        """Waits until it has stopped."""
        await self._server.wait_for_termination()

    async def stop(self, seconds: float) -> None:
        """Refuses further calls with UNAVAILABLE, waits for running ones, tells all clients to go away, and ends.

        A call that reaches gRPC between its own stop and the client's knowledge of it is CANCELLED there, which clients
        don't try again. So none may be on its way then: calls are held, after which a client that waits for each answer
        makes no more, and one that goes on nevertheless is disconnected, which it sees as UNAVAILABLE.

        Args:
            seconds: How long running calls may take. 0: they are cancelled at once.
        """
        service = self._service
        service.refusing = True  # ends the watches of health too
        try:
            await (self._end(seconds) if seconds else self._server.stop(0))
        finally:
            service.close()

    async def _end(self, seconds: float) -> None:
        service = self._service
        for tcp_socket in sockets_at(self.port):
            if is_listening(tcp_socket):
                refuse_new(tcp_socket)
        end = time.monotonic() + seconds
        while service.running and time.monotonic() < end:
            await asyncio.sleep(_FLUSH)
        held = service.held = asyncio.Event()
        await self._quiet()
        await self._disconnect()
        stopping = asyncio.ensure_future(self._server.stop(max(end - time.monotonic(), 1)))
        await asyncio.sleep(_FLUSH)
        held.set()
        await stopping

    async def _quiet(self) -> None:
        """Waits until no more calls come, as when each client waits for an answer; but not for long."""
        end = time.monotonic() + _LONGEST_HOLD
        quiet = 0
        while quiet < 2 and time.monotonic() < end:
            before = self._service.calls
            await asyncio.sleep(_HOLD)
            quiet = quiet + 1 if self._service.calls == before else 0

    async def _disconnect(self) -> None:
        """Disconnects whoever still calls, and waits until gRPC has noticed."""
        gone = set()
        for tcp_socket in sockets_at(self.port):
            if not is_listening(tcp_socket) and heard_within(tcp_socket, 2 * _HOLD):
                gone.add(tcp_socket.getpeername())
                tcp_socket.shutdown(socket.SHUT_RD)
        end = time.monotonic() + _LONGEST_HOLD
        while time.monotonic() < end and any(
            not is_listening(tcp_socket) and tcp_socket.getpeername() in gone for tcp_socket in sockets_at(self.port)
        ):
            await asyncio.sleep(_FLUSH)


def _milliseconds(seconds: float) -> int:
    return min(max(int(seconds * 1000), 1), _INT32)
