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
from . import access, openapi, protocol, scoring, webhook
from .access import AccessLog
from .codec import LARGE, MANY, Codec
from .datatypes import NAMES
from .ending import Ending
from .http import (
    PROBES,
    REFUSED,
    Body,
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
from .readiness import ready

if TYPE_CHECKING:
    from ..manifest import Interface
    from .batching import Answer
    from .metrics import Metrics
    from .models import Model, Version

_logger = logging.getLogger(__name__)

EXTENSIONS = ("binary_tensor_data",)
_QUIET = PROBES | {"/metrics"}
"""What is asked for all the time; answered well, it leaves no line in the log."""
_GONE = 499
"""What proxies call a client that closed the connection."""
_WEBHOOK = "/v2/webhook"
_LARGEST_DELIVERY = 1 << 20
_UNNOTICED = 0.05
"""Seconds: an answer that comes sooner is not worth watching whether the client still waits for it."""
_RETRY_AFTER = "1"

Handler = Callable[["Call"], Awaitable[Response]]


class Call:
    """One request on its way through the application."""

    __slots__ = ("app", "begin", "counted", "headers", "model", "receive", "request_id", "route", "scope", "version")

    def __init__(self, app: Application, scope: Scope, receive: Receive) -> None:
        self.app = app
        self.scope = scope
        self.receive = receive
        self.begin = time.monotonic()
        self.headers = Headers(scope)
        self.request_id = access.request_id(self.headers.get(access.HEADER))
        self.route = "unknown_route"
        self.counted = False
        """Whether it counts as an inference request."""
        self.model: Model | None = None
        self.version: str | None = None

    async def body(self, most: int | None = None) -> Body:
        """The request's body, decoded.

        Args:
            most: Bytes that it may have; default: as many as any.

        Raises:
            HttpError: It is too large or too slow, or its connection has refused what came of it.
        """
        app = self.app
        try:
            return await read_body(self.receive, self.headers, most or app.max_body, app.body_timeout)
        except ClientGone:
            refused = self.scope.get("state", {}).get(REFUSED)
            if refused is None:
                raise
            raise HttpError(*refused) from None  # which is answered already, and only counted and logged here

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
        access_log: Whether requests that were answered well leave a line in the log.
        exit_on_error: Whether a model that can't be loaded ends the server; see :func:`.readiness.ready`.
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
        access_log: bool = True,
        exit_on_error: bool = True,
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
        self._exit_on_error = exit_on_error
        self._log = AccessLog(access_log)
        self.codec = Codec(timeout)
        self._scoring = scoring.Scoring(next(iter(models.values())), timeout, self.codec)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            return
        call = Call(self, scope, receive)
        self._running += 1
        response: Response | None = None
        try:
            response = await self._answer(call)
        except ClientGone:
            pass
        except Exception as error:
            response = _failure(error, call)
        finally:
            self._running -= 1
        if response is not None:
            response.headers[access.HEADER] = call.request_id
            response = await compressed(response, call.headers.get("accept-encoding"))
            await respond(send, response)
        self._answered(call, response)

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return self._running

    def close(self) -> None:
        """Ends what belongs to it."""
        self.codec.close()

    def _answered(self, call: Call, response: Response | None) -> None:
        """Counts a request, and leaves its line in the log."""
        status = response.status if response is not None else _GONE
        if not call.counted:
            self.metrics.other(call.route, "http", status)
        scope, path = call.scope, call.scope["path"]
        client = scope.get("client")
        self._log.answered(
            protocol="http",
            method=scope["method"],
            path=path,
            status=status,
            refused=status >= 400,
            request_id=call.request_id,
            client=client and client[0],
            seconds=time.monotonic() - call.begin,
            quiet=path in _QUIET,
            bytes=response.length if response is not None else 0,
        )

    def only(self, client: Any) -> bool:
        """Whether the last request came over this connection too, and none is under way: one client asks in turn."""
        alone = client is not None and client == self._latest and self._running == 1
        self._latest = client
        return alone

    def ready(self) -> bool:
        """Whether it is, see :func:`.readiness.ready`, and does not end."""
        statuses = (model.status() for model in self.models.values())
        return not self._ending.draining and ready(statuses, self._exit_on_error)

    async def _answer(self, call: Call) -> Response:
        path = call.scope["path"]
        # MLflow signs its deliveries, and can't send a token with them.
        signed = path == _WEBHOOK and self._webhook_secret is not None
        if path not in PROBES and not signed:
            call.route = "unauthorized"
            check_token(call.headers, self._token)
            call.route = "unknown_route"
        handlers = self._find(call, path)
        if handlers is None:
            return await self._mlflow(call)
        handler = handlers.get(call.scope["method"])
        if handler is None:
            raise HttpError(405, "The method is not allowed here.", ("allow", ", ".join(handlers)))
        return await handler(call)

    def _find(self, call: Call, path: str) -> Mapping[str, Handler] | None:
        """The handlers of a path by method; None: it is not ours."""
        if path in _FIXED:
            call.route = path
            return _FIXED[path]
        if path == _WEBHOOK and self._webhook_secret is not None:
            call.route = path
            return {"POST": self._webhook}
        if not path.startswith("/v2/"):
            return None
        # By the raw path, in which a slash within a name is still escaped.
        parts = [unquote(part) for part in call.scope["raw_path"].decode("latin-1").removeprefix("/v2/").split("/")]
        if parts[0] != "models" or len(parts) < 2:
            raise HttpError(404, "There is no such route.")
        call.model = self.models.get(parts[1])
        if call.model is None:
            call.route = "unknown_model"
            raise HttpError(404, f"The model {parts[1][:200]!r} is not served; served are {', '.join(self.models)}.")
        rest = parts[2:]
        if len(rest) >= 2 and rest[0] == "versions":
            call.version, rest = rest[1][:200], rest[2:]
        action = "/".join(rest)
        handlers = _OF_MODEL.get(action)
        if handlers is None:
            raise HttpError(404, "There is no such route.")
        call.route = f"/v2/models/*/{action}" if action else "/v2/models/*"
        return handlers

    async def _mlflow(self, call: Call) -> Response:
        """What MLflow's own application answers, for the first model."""
        if call.scope["path"] == "/invocations":
            call.model = next(iter(self.models.values()))
            return await _counted(call, "mlflow", self._pass_on)
        response = await self._pass_on(call, await call.body(), call.begin)
        call.route = "unknown_route" if response.status == 404 else "mlflow"
        return response

    async def _pass_on(self, call: Call, body: Body, begin: float) -> Response:
        return await self._scoring.answer(call.scope, body)

    async def _webhook(self, call: Call) -> Response:
        body = bytes(await call.body(min(_LARGEST_DELIVERY, self.max_body)))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in call.scope["headers"]}
        assert self._webhook_secret is not None
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
    return await _counted(call, "http", _infer_body)


async def _counted(call: Call, protocol: str, answer: Callable[[Call, Body, float], Awaitable[Response]]) -> Response:
    """Reads an inference request's body, has it answered, and counts it; its time begins with its last byte."""
    call.counted = True
    status = _GONE
    begin: float | None = None
    try:
        body = await call.body()
        begin = time.monotonic()
        response = await answer(call, body, begin)
        status = response.status
        return response
    except Exception as error:
        if not isinstance(error, ClientGone):
            status = _status(error)
        raise
    finally:
        seconds = None if begin is None else time.monotonic() - begin
        call.app.metrics.request(call.served().name, protocol, status, seconds)


async def _infer_body(call: Call, body: Body, begin: float) -> Response:
    model = call.served()
    interface = call.current().interface
    request = await _decode(call, body, interface)
    inputs = protocol.fit(request, interface)
    seconds = min(call.app.timeout, request.timeout or call.app.timeout)
    version, future = model.submit(inputs, begin + seconds, here=call.app.only(call.scope.get("client")))
    answer = future.result() if future.done() else await _wait(call, future)
    if version.interface is not interface:  # another version took over meanwhile
        protocol.fit(request, version.interface)
    texts = None
    written = protocol.as_json(request, answer.outputs, version.interface)
    if written and sum(array.size for array in written.values()) > MANY:
        texts = await call.app.codec.texts(written, {t.name: NAMES[t.dtype] for t in version.interface.outputs})
    encoded = protocol.encode(
        request, answer.outputs, version.interface, model=model.name, version=version.version, texts=texts
    )
    if encoded.header_length is None:
        return Response(200, encoded.parts)
    length = str(encoded.header_length)
    return Response(200, encoded.parts, {"inference-header-content-length": length}, media="application/octet-stream")


async def _decode(call: Call, body: Body, interface: Interface) -> protocol.Request:
    """Reads a request; what takes long is done elsewhere."""
    length = call.headers.number("inference-header-content-length")
    if LARGE < (len(body) if length is None else length) <= len(body):
        return await call.app.codec.decode(body, length)
    parsed = protocol.parse(body, length)
    parsed.check(interface)
    if parsed.is_slow(LARGE):
        return await asyncio.to_thread(protocol.read, parsed)
    return protocol.read(parsed)


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


def _failure(error: Exception, call: Call) -> Response:
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
        _logger.error("A request failed", exc_info=error, extra={"request_id": call.request_id})
    return Response(status, [protocol.error_body(message)], headers)
