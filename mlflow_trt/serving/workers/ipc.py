"""Messages between the process that holds the engines and those that speak HTTP, over a socket pair.

In the interpreter's own format, ``marshal``, since both ends are the same Python. It is read and written faster than
JSON, and every request passes the one interpreter that holds the engines.
"""

from __future__ import annotations

import asyncio
import marshal
import socket
import struct
import threading
from collections.abc import Callable
from typing import cast

from .messages import Message, decode, encode

_LENGTH = struct.Struct("<I")
_LATER = 0.02
"""Seconds that a message may wait for another one to travel with."""


class IpcConnection(asyncio.Protocol):
    """One end. Messages that are sent at the same turn of the event loop travel together.

    Args:
        on_message: Called in the event loop with each message of the other end.
        on_close: Called there when the other end is gone.
    """

    def __init__(self, on_message: Callable[[Message], None], on_close: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._outgoing: list[Message] = []
        self._soon = False
        """Whether what is outgoing will be sent at this turn."""
        self._timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls, end: socket.socket, on_message: Callable[[Message], None], on_close: Callable[[], None]
    ) -> IpcConnection:
        """Takes over a socket."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(on_message, on_close), sock=end)
        return connection

    def send(self, message: Message) -> None:
        """Sends a message, from any thread. After the other end is gone it goes nowhere."""
        with self._lock:
            self._outgoing.append(message)
            first, self._soon = not self._soon, True
        if first:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_soon_threadsafe(self._flush)

    def send_later(self, message: Message) -> None:
        """Sends a message together with the next one, or a little later; from the event loop alone."""
        with self._lock:
            self._outgoing.append(message)
            wait = not self._soon and self._timer is None
        if wait:
            self._timer = self._loop.call_later(_LATER, self._flush)

    def close(self) -> None:
        """Closes this end."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        received = self._received
        received += data
        begin = 0
        while len(received) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, begin)
            end = begin + _LENGTH.size + length
            if len(received) < end:
                break
            for plain in marshal.loads(received[begin + _LENGTH.size : end]):
                self._on_message(decode(plain))
            begin = end
        del received[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self._transport = None
        self._on_close()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            outgoing, self._outgoing = self._outgoing, []
            self._soon = False
        if self._transport is not None and outgoing:
            content = marshal.dumps([encode(message) for message in outgoing])
            self._transport.write(_LENGTH.pack(len(content)) + content)
