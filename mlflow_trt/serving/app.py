"""The server's HTTP face, an ASGI application: the Open Inference Protocol v2, and behind it MLflow's own scoring app.

The protocol's routes are served here without a web framework between: at a millisecond per request its layers would be
a large part of the whole. Everything that is no route of ours goes to MLflow's application for the first model.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .. import __version__
from ..errors import BusyError, TrtError
from . import openapi, protocol, scoring, webhook
from .ending import Ending
from .http import (
    PROBES,
    ClientGone,
    Headers,
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
    check_token,
    compressed,
    read_body,
    respond,
)

if TYPE_CHECKING:
    from .batching import Answer
    from .metrics import Metrics
    from .models import Model, Version

_logger = logging.getLogger(__name__)

EXTENSIONS = ("binary_tensor_data",)
_WEBHOOK = "/v2/webhook"
_LARGEST_DELIVERY = 1 << 20
_UNNOTICED = 0.05
"""Seconds: an answer that comes sooner is not worth watching whether the client still waits for it."""
_RETRY_AFTER = "1"

Handler = Callable[["Call"], Awaitable[Response]]


class Call:
    """One request on its way through the application."""

    __slots__ = ("app", "headers", "model", "receive", "scope", "version")

    def __init__(self, app: Application, scope: Scope, receive: Receive) -> None:
        self.app = app
        self.scope = scope
        self.receive = receive
        self.headers = Headers(scope)
        self.model: Model | None = None
        self.version: str | None = None

    async def body(self) -> bytes | bytearray:
        """The request's body, decoded."""
        return await read_body(self.receive, self.headers, self.app.max_body, self.app.body_timeout)

    def served(self) -> Model:
        """The model that the path names."""
        assert self.model is not None
        return self.model

    def current(self) -> Version:
        """The version that answers now.

        Raises:
            BusyError: None is loaded yet.
            HttpError: The path names another one.
        """
        current = self.served().current
        if self.version is not None and self.version != current.version:
            raise HttpError(404, f"Version {self.version!r} is not served; version {current.version} is.")
        return current


class Application:
    """Serves models over HTTP.

    Args:
        models: By name; the first one is also behind MLflow's own routes.
        metrics: Where requests are counted.
        token: The bearer token that requests must have; None: none.
        max_body: Bytes that a body may have.
        timeout: Seconds that a request may take, once its body is there.
        body_timeout: Seconds that a body may take, or 1 MiB more of it.
        webhook_secret: What MLflow signs its webhook deliveries with; None: there is no webhook route.
        ending: The server's end; default: it never ends.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        metrics: Metrics,
        *,
        token: str | None = None,
        max_body: int = 256 << 20,
        timeout: float = 60.0,
        body_timeout: float = 30.0,
        webhook_secret: str | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.models = models
        self.metrics = metrics
        self.max_body = max_body
        self.timeout = timeout
        self.body_timeout = body_timeout
        self._ending = ending or Ending()
        self._token = token
        self._running = 0
        self._latest: Any = None
        self._webhook_secret = webhook_secret
        self._scoring = scoring.Scoring(next(iter(models.values())), timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            return
        call = Call(self, scope, receive)
        self._running += 1
        try:
            response = await self._answer(call)
        except ClientGone:
            return
        except Exception as error:
            response = _failure(error)
        finally:
            self._running -= 1
        await respond(send, compressed(response, call.headers.get("accept-encoding")))

    def only(self, client: Any) -> bool:
        """Whether the last request came over this connection too, and none is under way: one client asks in turn."""
        alone = client is not None and client == self._latest and self._running == 1
        self._latest = client
        return alone

    def ready(self) -> bool:
        """Whether every model has a version that answers, and the server does not end."""
        return not self._ending.draining and all(model.status()["state"] == "ready" for model in self.models.values())

    async def _answer(self, call: Call) -> Response:
        path = call.scope["path"]
        # MLflow signs its deliveries, and can't send a token with them.
        signed = path == _WEBHOOK and self._webhook_secret is not None
        if path not in PROBES and not signed:
            check_token(call.headers, self._token)
        handlers = self._find(call, path)
        if handlers is None:
            return await self._scoring.answer(call.scope, bytes(await call.body()))
        handler = handlers.get(call.scope["method"])
        if handler is None:
            raise HttpError(405, "The method is not allowed here.", ("allow", ", ".join(handlers)))
        return await handler(call)

    def _find(self, call: Call, path: str) -> Mapping[str, Handler] | None:
        """The handlers of a path by method; None: it is not ours."""
        if path in _FIXED:
            return _FIXED[path]
        if path == _WEBHOOK and self._webhook_secret is not None:
            return {"POST": self._webhook}
        if not path.startswith("/v2/"):
            return None
        # By the raw path, in which a slash within a name is still escaped.
        parts = [unquote(part) for part in call.scope["raw_path"].decode("latin-1").removeprefix("/v2/").split("/")]
        if parts[0] != "models" or len(parts) < 2:
            raise HttpError(404, "There is no such route.")
        call.model = self.models.get(parts[1])
        if call.model is None:
            raise HttpError(404, f"The model {parts[1][:200]!r} is not served; served are {', '.join(self.models)}.")
        rest = parts[2:]
        if len(rest) >= 2 and rest[0] == "versions":
            call.version, rest = rest[1][:200], rest[2:]
        handlers = _OF_MODEL.get("/".join(rest))
        if handlers is None:
            raise HttpError(404, "There is no such route.")
        return handlers

    async def _webhook(self, call: Call) -> Response:
        most = min(_LARGEST_DELIVERY, self.max_body)
        body = bytes(await read_body(call.receive, call.headers, most, self.body_timeout))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in call.scope["headers"]}
        if not webhook.verify_webhook(body, headers, self._webhook_secret):
            raise HttpError(401, "The delivery is not signed with this server's secret, or is too old.")
        name = webhook.registered_model(body)
        for model in self.models.values():
            if name is not None and model.registered_model == name:
                model.refresh()
        return Response(202, [b"{}"])


async def _live(call: Call) -> Response:
    return _json({"live": True})


async def _ready(call: Call) -> Response:
    ready = call.app.ready()
    return _json({"ready": ready}, 200 if ready else 503)


async def _health(call: Call) -> Response:
    # As MLflow's own: 200 if the model is loaded.
    return Response(200 if call.app.ready() else 503, [b"\n"])


async def _server(call: Call) -> Response:
    return _json({"name": "mlflow-trt", "version": __version__, "extensions": EXTENSIONS})


async def _metrics(call: Call) -> Response:
    from .metrics import MEDIA

    return Response(200, [await asyncio.to_thread(call.app.metrics.text)], media=MEDIA)


async def _openapi(call: Call) -> Response:
    return _json(openapi.document(list(call.app.models)))


async def _metadata(call: Call) -> Response:
    version = call.current()
    found = protocol.describe(
        version.interface,
        model=call.served().name,
        versions=[version.version],
        platform=version.platform,
        profiles=version.profiles,
    )
    # The protocol's metadata may hold more: here, what became of the last promotion.
    return _json({**found, "status": call.served().status()})


async def _model_ready(call: Call) -> Response:
    try:
        version = call.current()
    except BusyError:
        return _json({"name": call.served().name, "ready": False}, 503)
    return _json({"name": call.served().name, "version": version.version, "ready": True})


async def _infer(call: Call) -> Response:
    app, model = call.app, call.served()
    status = 499  # what proxies call a client that closed the connection
    begin = time.monotonic()
    try:
        body = await call.body()
        begin = time.monotonic()
        response = await _infer_body(call, body, begin)
        status = response.status
        return response
    except Exception as error:
        if not isinstance(error, ClientGone):
            status = _status(error)
        raise
    finally:
        app.metrics.request(model.name, "http", status, time.monotonic() - begin)


async def _infer_body(call: Call, body: bytes | bytearray, begin: float) -> Response:
    model = call.served()
    request = protocol.decode(body, call.headers.number("inference-header-content-length"))
    interface = call.current().interface
    inputs = protocol.fit(request, interface)
    seconds = min(call.app.timeout, request.timeout or call.app.timeout)
    version, future = model.submit(inputs, begin + seconds, here=call.app.only(call.scope.get("client")))
    answer = future.result() if future.done() else await _wait(call, future)
    if version.interface is not interface:  # another version took over meanwhile
        protocol.fit(request, version.interface)
    encoded = protocol.encode(request, answer.outputs, version.interface, model=model.name, version=version.version)
    if encoded.header_length is None:
        return Response(200, encoded.parts)
    length = str(encoded.header_length)
    return Response(200, encoded.parts, {"inference-header-content-length": length}, media="application/octet-stream")


async def _wait(call: Call, future: Future[Answer]) -> Answer:
    """Waits for an answer as long as the client does; work that nobody waits for any more is dropped."""
    await _settled(future, _UNNOTICED)
    if not future.done():
        # What follows a body that was read whole is only the end of the connection.
        gone = asyncio.ensure_future(call.receive())
        answered = asyncio.ensure_future(_settled(future))
        try:
            # The batcher itself ends what is waiting at its deadline; a batch that runs is not cut off.
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                future.cancel()
                raise ClientGone
        finally:
            gone.cancel()
            answered.cancel()
    return future.result()


async def _settled(future: Future[Answer], seconds: float = math.inf) -> None:
    """Waits until a future is done, but not longer.

    What the event loop's own thread sets, as in a front, is seen at once; ``asyncio.wrap_future`` would wake that
    thread from itself, which takes system calls and turns of the loop.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    waiter = loop.create_future()

    def tell() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def done(_: Future[Answer]) -> None:
        if threading.get_ident() == thread:
            tell()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(tell)

    future.add_done_callback(done)
    timer = loop.call_later(seconds, tell) if seconds < math.inf else None
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()


_FIXED: Mapping[str, Mapping[str, Handler]] = {
    "/v2": {"GET": _server},
    "/v2/": {"GET": _server},
    "/v2/health/live": {"GET": _live, "HEAD": _live},
    "/v2/health/ready": {"GET": _ready, "HEAD": _ready},
    "/ping": {"GET": _health},
    "/health": {"GET": _health},
    "/metrics": {"GET": _metrics},
    "/openapi.json": {"GET": _openapi},
}
_OF_MODEL: Mapping[str, Mapping[str, Handler]] = {
    "": {"GET": _metadata},
    "ready": {"GET": _model_ready},
    "infer": {"POST": _infer},
}


def _json(content: Any, status: int = 200) -> Response:
    import json

    return Response(status, [json.dumps(content).encode()])


def _status(error: Exception) -> int:
    if isinstance(error, HttpError):
        return error.status
    return int(error.get_http_status_code()) if isinstance(error, TrtError) else 500  # type: ignore[no-untyped-call]


def _failure(error: Exception) -> Response:
    """The protocol's error shape. What is not ours to tell, the client does not get to see."""
    status = _status(error)
    headers = {"retry-after": _RETRY_AFTER} if status == 503 else {}
    if isinstance(error, HttpError):
        message = error.message
        headers.update(error.headers)
    elif isinstance(error, TrtError):
        message = error.message
    else:
        message = "The server failed; its log says more."
    if status >= 500 and status not in (503, 504):
        _logger.error("A request failed", exc_info=error)
    return Response(status, [protocol.error_body(message)], headers)
