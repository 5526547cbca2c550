"""The server's HTTP face, an ASGI application: the Open Inference Protocol v2, and behind it MLflow's own scoring app.

The protocol's routes are served here without a web framework between: at a millisecond per request its layers would be
a large part of the whole. Everything that is no route of ours goes to MLflow's application for the first model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ...errors import TrtError
from .. import access_log
from ..access_log import AccessLog
from ..config import ServerConfig
from ..protocol import json_body
from ..readiness import ready
from ..shutdown import Shutdown
from . import scoring, webhook
from .codec import Codec
from .request import (
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
from .routes import FIXED, GONE, OF_MODEL, Handler, counted, status_of

if TYPE_CHECKING:
    from ..metrics import RequestMetrics
    from ..served_model import ServedModel, ServedVersion

_logger = logging.getLogger(__name__)

_QUIET = PROBES | {"/metrics"}
"""What is asked for all the time; answered well, it leaves no line in the log."""
_WEBHOOK = "/v2/webhook"
_LARGEST_DELIVERY = 1 << 20
_RETRY_AFTER = "1"


class RequestContext:
    """One request on its way through the application."""

    __slots__ = ("app", "begin", "counted", "headers", "model", "receive", "request_id", "route", "scope", "version")

    def __init__(self, app: Application, scope: Scope, receive: Receive) -> None:
        self.app = app
        self.scope = scope
        self.receive = receive
        self.begin = time.monotonic()
        self.headers = Headers(scope)
        self.request_id = access_log.request_id(self.headers.get(access_log.HEADER))
        self.route = "unknown_route"
        self.counted = False
        """Whether it counts as an inference request."""
        self.model: ServedModel | None = None
        self.version: str | None = None

    async def body(self, most: int | None = None) -> Body:
        """The request's body, decoded.

        Args:
            most: Bytes that it may have; default: as many as any.

        Raises:
            HttpError: It is too large or too slow, or its connection has refused what came of it.
        """
        app, state = self.app, self.scope.setdefault("state", {})
        try:
            return await read_body(self.receive, self.headers, most or app.max_body, app.body_timeout, state)
        except ClientGone:
            refused = state.get(REFUSED)
            if refused is None:
                raise
            raise HttpError(*refused) from None  # which is answered already, and only counted and logged here

    def served(self) -> ServedModel:
        """The model that the path names."""
        assert self.model is not None
        return self.model

    def current(self) -> ServedVersion:
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
        config: How the server serves.
        shutdown: The server's end.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        metrics: RequestMetrics,
        config: ServerConfig,
        shutdown: Shutdown,
    ) -> None:
        self.models = models
        self.metrics = metrics
        self.max_body = config.max_body
        self.timeout = config.timeout
        self.body_timeout = config.limits.body_timeout
        self._shutdown = shutdown
        self._token = config.token
        self._running = 0
        self._latest: Any = None
        self._webhook_secret = config.webhook_secret
        self._exit_on_error = config.exit_on_error
        self._log = AccessLog(config.access_log)
        self.codec = Codec(config.timeout)
        self._scoring = scoring.Scoring(next(iter(models.values())), config.timeout, self.codec)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            return
        context = RequestContext(self, scope, receive)
        self._running += 1
        response: Response | None = None
        try:
            response = await self._answer(context)
        except ClientGone:
            pass
        except Exception as error:
            response = _failure(error, context)
        finally:
            self._running -= 1
        if response is not None:
            response.headers[access_log.HEADER] = context.request_id
            accepted = context.headers.get("accept-encoding")
            if accepted is not None:
                response = await compressed(response, accepted)
            await respond(send, response)
        self._answered(context, response)

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return self._running

    def close(self) -> None:
        """Ends what belongs to it."""
        self.codec.close()

    def _answered(self, context: RequestContext, response: Response | None) -> None:
        """Counts a request, and leaves its line in the log."""
        status = response.status if response is not None else GONE
        if not context.counted:
            self.metrics.other(context.route, "http", status)
        scope, path = context.scope, context.scope["path"]
        client = scope.get("client")
        self._log.answered(
            protocol="http",
            method=scope["method"],
            path=path,
            status=status,
            refused=status >= 400,
            request_id=context.request_id,
            client=client and client[0],
            seconds=time.monotonic() - context.begin,
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
        return not self._shutdown.draining and ready(statuses, self._exit_on_error)

    async def _answer(self, context: RequestContext) -> Response:
        path = context.scope["path"]
        # MLflow signs its deliveries, and can't send a token with them.
        signed = path == _WEBHOOK and self._webhook_secret is not None
        if path not in PROBES and not signed:
            context.route = "unauthorized"
            check_token(context.headers, self._token)
            context.route = "unknown_route"
        handlers = self._find(context, path)
        if handlers is None:
            return await self._mlflow(context)
        handler = handlers.get(context.scope["method"])
        if handler is None:
            raise HttpError(405, "The method is not allowed here.", ("allow", ", ".join(handlers)))
        return await handler(context)

    def _find(self, context: RequestContext, path: str) -> Mapping[str, Handler] | None:
        """The handlers of a path by method; None: it is not ours."""
        if path in FIXED:
            context.route = path
            return FIXED[path]
        if path == _WEBHOOK and self._webhook_secret is not None:
            context.route = path
            return {"POST": self._webhook}
        if not path.startswith("/v2/"):
            return None
        # By the raw path, in which a slash within a name is still escaped.
        parts = [unquote(part) for part in context.scope["raw_path"].decode("latin-1").removeprefix("/v2/").split("/")]
        if parts[0] != "models" or len(parts) < 2:
            raise HttpError(404, "There is no such route.")
        context.model = self.models.get(parts[1])
        if context.model is None:
            context.route = "unknown_model"
            raise HttpError(404, f"The model {parts[1][:200]!r} is not served; served are {', '.join(self.models)}.")
        rest = parts[2:]
        if len(rest) >= 2 and rest[0] == "versions":
            context.version, rest = rest[1][:200], rest[2:]
        action = "/".join(rest)
        handlers = OF_MODEL.get(action)
        if handlers is None:
            raise HttpError(404, "There is no such route.")
        context.route = f"/v2/models/*/{action}" if action else "/v2/models/*"
        return handlers

    async def _mlflow(self, context: RequestContext) -> Response:
        """What MLflow's own application answers, for the first model."""
        if context.scope["path"] == "/invocations":
            context.model = next(iter(self.models.values()))
            return await counted(context, "mlflow", self._pass_on)
        response = await self._pass_on(context, await context.body(), context.begin)
        context.route = "unknown_route" if response.status == 404 else "mlflow"
        return response

    async def _pass_on(self, context: RequestContext, body: Body, begin: float) -> Response:
        return await self._scoring.answer(context.scope, body)

    async def _webhook(self, context: RequestContext) -> Response:
        body = bytes(await context.body(min(_LARGEST_DELIVERY, self.max_body)))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in context.scope["headers"]}
        assert self._webhook_secret is not None
        if not webhook.verify_webhook(body, headers, self._webhook_secret):
            raise HttpError(401, "The delivery is not signed with this server's secret, or is too old.")
        name = webhook.registered_model(body)
        for model in self.models.values():
            if name is not None and model.registered_model == name:
                model.refresh()
        return Response(202, [b"{}"])


def _failure(error: Exception, context: RequestContext) -> Response:
    """The protocol's error shape. What is not ours to tell, the client does not get to see."""
    status = status_of(error)
    headers = {"retry-after": _RETRY_AFTER} if status == 503 else {}
    if isinstance(error, HttpError):
        message = error.message
        headers.update(error.headers)
    elif isinstance(error, TrtError):
        message = error.message
    else:
        message = "The server failed; its log says more."
    if status >= 500 and status not in (503, 504):
        _logger.error("A request failed", exc_info=error, extra={"request_id": context.request_id})
    return Response(status, [json_body.error_body(message)], headers)
