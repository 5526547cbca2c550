"""HTTP connections within limits: uvicorn's protocol.

uvicorn itself limits neither the bytes nor the time of a request's head, nor the time that a client takes to read; and
it takes an offer to switch to HTTP/2 for the end of the request.

Deadlines cost a request nothing: all connections are looked at now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import httptools

from ..._uvicorn import STATUS_LINE, HttpProtocol
from .. import access_log
from ..limits import LEAST
from .connection_guard import ConnectionGuard, Refusal
from .request import PROBES, REFUSED, TAKE

_LINGER = 1.0
"""Seconds that a refused client may go on sending: closed at once, its system would drop the answer unread."""
_FIRST = 1.0
"""Seconds that a new connection has for its first request when the server already ends."""
_PROBES = frozenset(path.encode() for path in PROBES)

_OFFER = (b"upgrade", b"http2-settings")
"""What a Connection header names in an offer to switch to another protocol."""
_CONTINUE = STATUS_LINE[100][:12]
_INVALID: Refusal = (400, "The request is not valid HTTP.", "")


class Connection(HttpProtocol):
    """One connection of a client.

    Args:
        guard: What looks after it.
        arguments: uvicorn's.
    """

    def __init__(self, guard: ConnectionGuard, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guard = guard
        self._max_header = guard.limits.max_header
        self._head = 0
        """Bytes that came since the last end of headers, piece of a body, or end of a request, but for those that were
        read together with it."""
        self._refusal: Refusal | None = None
        self._refused = False
        self._over = False
        """Whether it is beyond the limit of connections."""
        self._doing = ""
        self._cycle: Any = None
        self._before: Any = None
        """The request before the one that came last."""
        self._last: Any = None
        """The one after whose answer the connection ends, because the server does."""
        self._since = 0.0
        self._outstanding = 0
        self._resumed = False

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        super().connection_made(transport)
        if len(self.connections) > self._guard.limits.max_connections:
            self._over = True
            self._guard.take_spare(self)
        if self._guard.closing:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        super().connection_lost(exc)
        if self._over:
            self._guard.spare.pop(self, None)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self.stop_keep_alive_timer()
        if self._refused:
            return
        self._head += len(data)
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as offer:
                    rest = self._decline(offer, rest)
        except httptools.HttpParserError:
            self.refuse(*(self._refusal or _INVALID))
        else:
            if self._head > self._max_header:
                self.refuse(*self._too_long())

    def resume_writing(self) -> None:
        """asyncio's."""
        self._resumed = True
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's."""
        self._guard.count("idle_time")
        super().timeout_keep_alive_handler()

    # --- what the parser calls ---

    def on_headers_complete(self) -> None:
        """httptools'."""
        if self.parser.should_upgrade():
            return  # read again without the offer
        if self._head > self._max_header and self._head_size() > self._max_header:
            self._stop(self._too_long())
        self._head = 0
        if self._over and self.url.partition(b"?")[0] not in _PROBES:
            self._stop(self._guard.too_many())
        self._before = self.cycle
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # whose answer is a head alone
            self.cycle.transport = _Joining(self.transport)
        if self._over or self._guard.shutdown.draining:
            self._end_after(self.cycle)

    def on_body(self, body: bytes) -> None:
        """httptools'."""
        self._head = 0
        take = self.cycle.scope["state"].get(TAKE)
        if take is None:
            super().on_body(body)
        elif not take(body):
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """httptools'."""
        if self.parser.should_upgrade():
            return
        self._head = 0
        super().on_message_complete()
        self.cycle.more_body = False  # also where it was answered before

    def _decline(self, offer: httptools.HttpParserUpgrade, data: bytes | memoryview) -> memoryview:
        """Starts a request over, as if its client had never offered to switch to another protocol.

        RFC 9110, 7.8: a server may ignore an Upgrade. The parser takes what follows the headers for the other
        protocol, so a new one starts over, without the offer.

        Returns:
            What came after the headers.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refusal = (405, "The method is not allowed here.", "")
            raise httptools.HttpParserError from None
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(_lines(self.headers)))
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # as uvicorn makes its own
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)
        return memoryview(data)[offer.args[0] :]

    def _stop(self, refusal: Refusal) -> None:
        """Has the parser stop."""
        self._refusal = refusal
        raise httptools.HttpParserError

    def _head_size(self) -> int:
        return len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])

    def _too_long(self) -> Refusal:
        return (431, f"The request's head has more than {self._max_header:,} bytes.", "header_bytes")

    # --- how a connection ends ---

    def refuse(self, status: int, message: str, limit: str = "") -> None:
        """Answers with an error, reads no further request, and closes the connection.

        Args:
            status: HTTP's.
            message: What the client is told.
            limit: The limit that is counted; one of :data:`~.limits.CUTS`.
        """
        if limit:
            self._guard.count(limit)
        self._refused = True
        if self.transport.is_closing():
            return
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # it is broken, and has not begun
            self.cycle = self._before
        cycle = self.cycle
        identifier = access_log.request_id(self._given(access_log.HEADER.encode()))
        broken = cycle is not None and cycle.more_body  # itself, and not what follows it
        if not broken:
            self._tell_of(status, identifier)  # of others the application tells
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not broken:
                cycle.keep_alive = False  # what came before gets its answer
                return
            cycle.scope["state"][REFUSED] = (status, message)
            cycle.disconnected = True  # nobody waits for its answer
            cycle.message_event.set()
        if not (broken and cycle.response_complete):
            self._write_refusal(status, message, identifier)
        self.flow.resume_reading()
        with contextlib.suppress(OSError, NotImplementedError):
            self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)

    def _write_refusal(self, status: int, message: str, identifier: str) -> None:
        content = json.dumps({"error": message}).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
            (access_log.HEADER.encode(), identifier.encode()),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        head = STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(head + b"\r\n" + content)

    def _tell_of(self, status: int, identifier: str) -> None:
        """Has a refused request counted, and leave its line in the log."""
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")
        self._guard.refused(
            status,
            method=self.parser.get_method().decode("latin-1") if path else "",
            path=path,
            request_id=identifier,
            client=self.client and self.client[0],
            seconds=self.loop.time() - self._since if self._doing == "head" else 0.0,
        )

    def _given(self, name: bytes) -> str | None:
        """A header of the request, as far as it has come."""
        value = dict(self.headers or ()).get(name)
        return None if value is None else value.decode("latin-1")

    def announce_end(self) -> None:
        """Has the last answer, if it has not begun, say that the connection ends."""
        if self.cycle is not None and not self.cycle.response_started:
            self._end_after(self.cycle)

    def _end_after(self, cycle: Any) -> None:
        """Ends the connection after an answer; not after an earlier request's any more, which would lose this one."""
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive = True
        self._last = cycle if cycle.keep_alive else None
        cycle.keep_alive = False

    def shutdown(self) -> None:
        """uvicorn's: ends the connection once it has answered.

        A client that has just connected is about to ask; to close now would lose its request.
        """
        if self._answering():
            self.cycle.keep_alive = False
        elif self.cycle is None and not self._head:
            self.loop.call_later(_FIRST, self._close_if_idle)
        else:
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._answering() and not self._head:
            self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # --- deadlines ---

    def look(self, now: float) -> int:
        """Cuts the connection off if its time is over.

        Args:
            now: The event loop's time.

        Returns:
            Bytes that the client has not taken yet and this process holds.
        """
        limits = self._guard.limits
        unsent = int(self.transport.get_write_buffer_size())
        if unsent:
            doing = "writing"
        elif self._answering():
            doing = "answering"
        else:
            doing = "head" if self._head else "idle"
        began = doing != self._doing or self.cycle is not self._cycle
        if began:
            self._doing, self._cycle, self._since = doing, self.cycle, now
        if doing == "writing":
            self._look_at_writing(now, unsent, began)
        elif self._refused:
            pass  # it is being closed
        elif doing == "head" and now - self._since >= limits.header_timeout:
            self.refuse(408, f"The request's head did not arrive within {limits.header_timeout:g} s.", "header_time")
        elif doing == "idle" and now - self._since >= limits.idle_timeout:
            self._guard.count("idle_time")
            self.transport.close()
        return unsent

    def _look_at_writing(self, now: float, unsent: int, began: bool) -> None:
        outstanding = unsent + _in_kernel(self.transport)
        # Resumed: the client had taken so much that more was written.
        if began or self._resumed or self._outstanding - outstanding >= LEAST:
            self._since, self._outstanding, self._resumed = now, outstanding, False
        elif now - self._since >= self._guard.limits.write_timeout:
            self.cut("write_time")

    def close(self) -> None:
        """Closes the connection once all is sent."""
        self.transport.close()

    def cut(self, limit: str) -> None:
        """Ends the connection at once, with all that was not sent."""
        self._guard.count(limit)
        self.transport.abort()

    @property
    def since(self) -> float:
        """When what it does began, or last moved on."""
        return self._since


class _Joining:
    """What uvicorn writes an answer to: its head waits for what follows it, and takes no system call of its own."""

    __slots__ = ("_head", "_transport", "is_closing")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing = transport.is_closing

    def write(self, content: bytes | memoryview) -> None:
        """asyncio's."""
        if self._head is None and not (first := bytes(content)).startswith(_CONTINUE):
            self._head = first
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, content))
        else:
            self._transport.write(content)

    def close(self) -> None:
        """asyncio's."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()


def _lines(headers: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The lines of a request's headers but for what makes them an offer."""
    for name, value in headers:
        if name == b"connection":
            value = b",".join(token for token in value.split(b",") if token.strip().lower() not in _OFFER)
        if name != b"upgrade":
            yield b"%s: %s\r\n" % (name, value)


def _in_kernel(transport: Any) -> int:
    """Bytes that the client's system has not confirmed yet; 0 where this one does not tell."""
    try:
        import fcntl
        import termios

        number = transport.get_extra_info("socket").fileno()
        return int(struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))[0])
    except (ImportError, OSError, AttributeError):
        return 0
