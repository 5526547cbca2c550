"""One HTTP request and its response over ASGI: the body within limits, its encodings, the bearer token."""

from __future__ import annotations

import asyncio
import hmac
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Union

from ..limits import LEAST
from .body import BodyBuffer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Body = Union[bytes, bytearray, memoryview]

PROBES = frozenset({"/v2/health/live", "/v2/health/ready", "/ping", "/health"})
"""Paths that probes ask for; they need no token, and are answered when there are too many connections."""

REFUSED = "mlflow_trt.refused"
"""Where in a request's state its connection leaves status and message of a refusal that it has sent itself."""

TAKE = "mlflow_trt.take"
"""Where in a request's state the application leaves a function that takes the pieces of its body as they arrive, and
answers whether there is room for each. ASGI's way costs a turn of the event loop and two copies for each."""

_ENCODINGS = {"gzip": 31, "deflate": 15}
"""Content-Encoding → zlib's ``wbits``."""
_SMALL = 1024
"""Bytes: compressing less gains nothing."""
_PIECE = 1 << 20
"""Bytes that are decompressed at once."""
_QUICK = 64 << 10
"""Bytes: compressing more takes longer than a millisecond."""
_NOT_TAKEN = re.compile(r"\s*q=0(\.0*)?\s*", re.IGNORECASE)
"""The weight of an encoding that a client refuses."""


class HttpError(Exception):
    """A request that is answered with an error status before any model sees it."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class ClientGone(Exception):
    """The client closed the connection: nobody waits for a response."""


@dataclass(frozen=True)
class Response:
    """What is sent back."""

    status: int
    parts: Sequence[bytes | memoryview] = ()
    headers: dict[str, str] = field(default_factory=dict)
    media: str = "application/json"

    @cached_property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(memoryview(part).nbytes for part in self.parts)


class Headers:
    """A request's headers by lower-case name; the last of several counts."""

    def __init__(self, scope: Scope) -> None:
        self._found: dict[bytes, bytes] = dict(scope["headers"])

    def get(self, name: str) -> str | None:
        """A header's value."""
        value = self._found.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def number(self, name: str) -> int | None:
        """A header that is a whole number.

        Raises:
            HttpError: It is something else.
        """
        value = self.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 16):
            raise HttpError(400, f"The header {name} is not a whole number.")
        return int(value)


def check_token(headers: Headers, token: str | None) -> None:
    """Compares the request's bearer token, in constant time.

    Raises:
        HttpError: 401.
    """
    if token is None:
        return
    kind, _, given = (headers.get("authorization") or "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise HttpError(401, "A valid bearer token is needed.", ("www-authenticate", "Bearer"))


async def read_body(
    receive: Receive, headers: Headers, limit: int, seconds: float, state: MutableMapping[str, Any]
) -> Body:
    """Reads a request's body and undoes its Content-Encoding.

    Args:
        receive: ASGI's.
        headers: The request's.
        limit: Bytes that it may have, before and after decoding.
        seconds: How long it may take; and again after each :data:`~.limits.LEAST` bytes.
        state: The request's, in which a connection looks for :data:`TAKE`.

    Raises:
        ClientGone: The connection broke off.
        HttpError: 413 too large, 408 too slow, 415 an encoding that is not known, 400 one that is damaged.
    """
    length = headers.number("content-length")
    if length is not None and length > limit:
        raise _too_large(limit)
    body = await _Body(receive, limit, length or limit, seconds, state).read()
    encoding = (headers.get("content-encoding") or "identity").strip().lower()
    # In a thread: a few bytes may become hundreds of megabytes.
    return body if encoding == "identity" else await asyncio.to_thread(decompress, body, encoding, limit)


def decompress(body: Body, encoding: str, limit: int) -> Body:
    """Undoes a Content-Encoding.

    Raises:
        HttpError: 415 an encoding that is not known, 400 one that is damaged, 413 more than ``limit`` bytes come out.
    """
    if encoding not in _ENCODINGS:
        raise HttpError(415, "The Content-Encoding is not known; known are gzip, deflate and identity.")
    stream = zlib.decompressobj(_ENCODINGS[encoding])
    plain = BodyBuffer(limit + _PIECE)
    rest: Body = body
    try:
        while not stream.eof and plain.size <= limit:
            before = plain.size
            plain.append(stream.decompress(rest, _PIECE))
            rest = stream.unconsumed_tail
            if plain.size == before and not rest:  # cut short
                break
    except zlib.error:
        raise HttpError(400, f"The body is not valid {encoding}.") from None
    if plain.size > limit:
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        raise HttpError(400, f"The body is not valid {encoding}: it is cut short, or more follows.")
    return plain.take()


async def compressed(response: Response, accepted: str) -> Response:
    """Compresses a response if the client wants that and it is worth the time.

    Args:
        response: It.
        accepted: Accept-Encoding.
    """
    encoding = encoding_of(response, accepted)
    if encoding is None:
        return response
    if response.length <= _QUICK:
        return compress(response, encoding)
    return await asyncio.to_thread(compress, response, encoding)


def encoding_of(response: Response, accepted: str) -> str | None:
    """Decides how a response is compressed; None: not at all.

    A client that accepts one encoding alone asks for it, as Triton's does. Most others accept several at every request
    without a thought; they get compressed text, but tensors as they are: compressing floats takes far longer than
    sending them.
    """
    if response.length < _SMALL:
        return None
    offers = [part.partition(";") for part in accepted.split(",")]
    wanted = [name.strip().lower() for name, _, weight in offers if not _NOT_TAKEN.fullmatch(weight)]
    encoding = next((name for name in wanted if name in _ENCODINGS), None)
    if encoding is None or (len(wanted) > 1 and response.media != "application/json"):
        return None
    return encoding


def compress(response: Response, encoding: str) -> Response:
    """Compresses a response."""
    stream = zlib.compressobj(1, zlib.DEFLATED, _ENCODINGS[encoding])
    body = b"".join([*(stream.compress(part) for part in response.parts), stream.flush()])
    return Response(response.status, [body], {**response.headers, "content-encoding": encoding}, response.media)


async def respond(send: Send, response: Response) -> None:
    """Sends a response."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    headers.append((b"content-type", response.media.encode()))
    headers.append((b"content-length", str(response.length).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    parts = response.parts or [b""]
    if response.length <= 1 << 16 and len(parts) > 1:
        parts = [b"".join(parts)]  # one packet
    last = len(parts) - 1
    for number, part in enumerate(parts):
        await send({"type": "http.response.body", "body": part, "more_body": number < last})


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


class _Body:
    """A body that is being read."""

    def __init__(
        self, receive: Receive, limit: int, most: int, seconds: float, state: MutableMapping[str, Any]
    ) -> None:
        self._receive = receive
        self._limit = limit
        self._most = most
        """Bytes that it says that it has, or may have."""
        self._seconds = seconds
        self._state = state
        self._gathered = BodyBuffer(most)
        self._too_large = False
        self._known = 0
        """Its size when the deadline was looked at last."""
        self._late = False

    async def read(self) -> Body:
        # As asyncio.timeout, which would have to be moved on with each piece.
        task: Any = asyncio.current_task()
        self._cancel = task.cancel
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        try:
            return await self._all()
        except asyncio.CancelledError:
            if not self._late:
                raise
            task.uncancel()
            text = f"The body did not arrive, nor {LEAST >> 20} MiB more of it, within {self._seconds:g} s."
            raise HttpError(408, text, ("connection", "close")) from None
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        if self._gathered.size - self._known >= LEAST:
            self._known = self._gathered.size
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        else:
            self._late = True
            self._cancel()

    async def _all(self) -> Body:
        message = await _next(self._receive)
        first: bytes = message.get("body", b"")
        if len(first) > self._limit:
            raise _too_large(self._limit)
        if not message.get("more_body", False):
            return first
        self._take(first)
        self._state[TAKE] = self._take
        try:
            more = True
            while more:
                message = await _next(self._receive)
                self._take(message.get("body", b""))
                if self._too_large:  # this piece, or one that the connection handed over
                    raise _too_large(self._limit)
                more = message.get("more_body", False)
        finally:
            del self._state[TAKE]
        return self._gathered.take()

    def _take(self, piece: bytes) -> bool:
        """Adds a piece; False: there is no room for it."""
        if self._gathered.size + len(piece) > self._most:
            self._too_large = True
            return False
        if piece:
            self._gathered.append(piece)
        return True


def _too_large(limit: int) -> HttpError:
    # The rest of the body is not read, so the connection can't serve another request.
    return HttpError(413, f"The body has more than {limit:,} bytes, which is the limit.", ("connection", "close"))
