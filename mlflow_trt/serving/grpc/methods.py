"""The methods of the Open Inference Protocol's ``GRPCInferenceService``.

Requests become the same ``protocol.Request`` as over HTTP and meet the same models. A client that cancels its call, or
whose deadline passes, cancels what waits for it: gRPC then cancels the task that answers, and that its future.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from grpc import StatusCode

from ..._version import __version__
from ...errors import BusyError, DeadlineError, InputError, TrtError
from .. import access_log
from ..access_log import AccessLog
from ..config import ServerConfig
from ..http.codec import LARGE, Codec
from ..protocol import protobuf
from ..protocol.datatypes import ProtocolError, show
from ..protocol.inference_request import InferenceRequest, fit
from ..protocol.metadata import describe
from ..readiness import ready
from ..shutdown import Shutdown

if TYPE_CHECKING:
    from ..metrics import Metrics
    from ..served_model import ServedModel, ServedVersion

_logger = logging.getLogger(__name__)

_OPEN = frozenset({"ServerLive", "ServerReady"})
"""What probes ask; needs no token."""
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (ProtocolError, StatusCode.INVALID_ARGUMENT),
    (InputError, StatusCode.INVALID_ARGUMENT),
    (BusyError, StatusCode.UNAVAILABLE),
    (DeadlineError, StatusCode.DEADLINE_EXCEEDED),
)
_LONGEST = 2000
"""Bytes of an error's message: it travels in a header, where a byte may become three, and clients refuse 8 KiB."""
_RETRY = (("grpc-retry-pushback-ms", "1000"),)
"""What HTTP calls Retry-After; gRPC clients with a retry policy obey it."""

Context = Any  # grpc.aio.ServicerContext, whose types are only in a package of stubs


class RpcError(Exception):
    """A call that ends with an error status before any model sees it."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotServedError(RpcError):
    """There is no model of that name."""

    def __init__(self, message: str) -> None:
        super().__init__(StatusCode.NOT_FOUND, message)


class Service:
    """Answers the protocol's methods.

    Args:
        models: By name.
        config: How the server serves.
        metrics: Where calls are counted.
        shutdown: The server's end; default: it never ends.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        config: ServerConfig,
        *,
        metrics: Metrics | None,
        shutdown: Shutdown | None = None,
    ) -> None:
        self._models = models
        self._authorization = None if config.token is None else f"Bearer {config.token}".encode()
        self._timeout = config.timeout
        self._metrics = metrics
        self._shutdown = shutdown or Shutdown()
        self._exit_on_error = config.exit_on_error
        self._log = AccessLog(config.access_log)
        self._codec = Codec(config.timeout)
        self.running = 0
        """Inferences that have not been answered."""
        self.calls = 0
        """Calls that came."""
        self.refusing = False
        """Whether further inferences are refused."""
        self.held: asyncio.Event | None = None
        """Until it is set, no further call is answered."""
        if metrics is not None:
            metrics.in_flight["grpc"] = lambda: self.running

    def close(self) -> None:
        """Ends what belongs to it."""
        self._codec.close()

    async def arrived(self) -> None:
        """Counts a call that came, and holds it where calls are held."""
        self.calls += 1
        if self.held is not None:
            await self.held.wait()

    def seen(self, route: str, code: StatusCode) -> None:
        """Counts a call that is no inference."""
        if self._metrics is not None:
            self._metrics.other(route, "grpc", code.name)

    async def admit(self, context: Context) -> None:
        """Ends a call of reflection that has no valid token, and counts it."""
        await self.arrived()
        try:
            self.check_token(context)
        except RpcError as error:
            self.seen("unauthorized", error.code)
            await _abort(context, error, access_log.request_id(_metadata(context, access_log.HEADER)))
        self.seen("ServerReflectionInfo", StatusCode.OK)

    def serving(self, name: str) -> bool | None:
        """Whether a service (``""``: the whole server) or a model serves; None: there is none of that name."""
        if name in ("", protobuf.SERVICE):
            return self._ready()
        model = self._models.get(name)
        return None if model is None else bool(model.status()["state"] == "ready")

    def handlers(self) -> dict[str, Any]:
        """Returns a handler for each method, by its name."""
        answers: dict[str, Callable[[Any], Any]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
        }
        methods: dict[str, Callable[[bytes, Context], Awaitable[bytes]]] = {
            name: partial(self._tell, name, answer) for name, answer in answers.items()
        }
        methods["ModelInfer"] = self._infer
        # Without a deserializer: gRPC would answer a broken message with UNKNOWN and a Python type's name.
        return {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in methods.items()}

    async def _tell(self, method: str, answer: Callable[[Any], Any], data: bytes, context: Context) -> bytes:
        """Answers everything but inference."""
        begin = time.monotonic()
        identifier = access_log.request_id(_metadata(context, access_log.HEADER))
        context.set_trailing_metadata(((access_log.HEADER, identifier),))
        route, code = "unauthorized", StatusCode.CANCELLED
        try:
            await self.arrived()
            if method not in _OPEN:
                self.check_token(context)
            route = method
            request = protobuf.parse(protobuf.message(protobuf.METHODS[method].input_type.name), data)
            response = protobuf.message(protobuf.METHODS[method].output_type.name)(**answer(request))
            code = StatusCode.OK
            return bytes(response.SerializeToString())
        except Exception as error:
            code, route = _code(error), _route(error, route)
            await _abort(context, error, identifier)
            raise
        finally:
            self._answered(context, method, code, identifier, begin, route)

    async def _infer(self, data: bytes, context: Context) -> bytes:
        begin = time.monotonic()
        name, code, route = "", StatusCode.CANCELLED, "unauthorized"
        identifier = access_log.request_id(_metadata(context, access_log.HEADER))
        context.set_trailing_metadata(((access_log.HEADER, identifier),))
        refused = self.refusing
        self.running += not refused
        try:
            await self.arrived()
            if refused:
                route = "ModelInfer"
                raise RpcError(StatusCode.UNAVAILABLE, "The server is ending.")
            self.check_token(context)
            route = "ModelInfer"
            left = context.time_remaining()
            heads, raw = protobuf.cut(data)
            if sum(map(len, heads)) > LARGE:  # typed contents; raw data is looked at only
                name, wanted, request = await self._codec.decode_grpc(data)
                model, version = self._find(name, wanted)
            else:
                message, raw = protobuf.read(heads, raw)
                name = message.model_name
                model, version = self._find(name, message.model_version)
                protobuf.check(message, version.interface)
                if protobuf.is_slow(message, raw, LARGE):
                    request = await asyncio.to_thread(protobuf.decode, message, raw)
                else:
                    request = protobuf.decode(message, raw)
            response = await self._answer(model, version, request, begin, left)
            code = StatusCode.OK
            return response
        except Exception as error:
            code, route = _code(error), _route(error, route)
            await _abort(context, error, identifier)
            raise
        finally:
            self.running -= not refused
            served = name if name in self._models else None
            self._answered(context, "ModelInfer", code, identifier, begin, route, served)

    def _answered(
        self,
        context: Context,
        method: str,
        code: StatusCode,
        identifier: str,
        begin: float,
        route: str,
        inferred: str | None = None,
    ) -> None:
        """Counts a call, and leaves its line in the log."""
        seconds = time.monotonic() - begin
        if self._metrics is not None and inferred is not None:
            self._metrics.request(inferred, "grpc", code.name, seconds)
        else:
            self.seen(route, code)
        self._log.answered(
            protocol="grpc",
            method="POST",
            path=f"/{protobuf.SERVICE}/{method}",
            status=code.name,
            refused=code is not StatusCode.OK,
            request_id=identifier,
            client=context.peer(),
            seconds=seconds,
            quiet=method in _OPEN,
        )

    async def _answer(
        self,
        model: ServedModel,
        version: ServedVersion,
        request: InferenceRequest,
        begin: float,
        left: float | None,
    ) -> bytes:
        inputs = fit(request, version.interface)
        limits = (self._timeout, request.timeout, left)
        deadline = begin + min([seconds for seconds in limits if seconds is not None])
        # The batcher ends what is waiting at its deadline; a batch that runs is not cut off.
        answer = await asyncio.wrap_future(model.submit(inputs, deadline))
        answering = answer.version
        if answering.interface is not version.interface:  # another version took over meanwhile
            fit(request, answering.interface)
        return protobuf.encode(
            request, answer.outputs, answering.interface, model=model.name, version=answering.version
        )

    def _server_live(self, request: Any) -> dict[str, Any]:
        return {"live": True}

    def _server_ready(self, request: Any) -> dict[str, Any]:
        return {"ready": self._ready()}

    def _ready(self) -> bool:
        statuses = (model.status() for model in self._models.values())
        return not self._shutdown.draining and ready(statuses, self._exit_on_error)

    def _model_ready(self, request: Any) -> dict[str, Any]:
        try:
            self._find(request.name, request.version)
        except (BusyError, RpcError):  # as with Triton, one that is not served is not ready
            return {"ready": False}
        return {"ready": True}

    def _server_metadata(self, request: Any) -> dict[str, Any]:
        return {"name": "mlflow-trt", "version": __version__}

    def _model_metadata(self, request: Any) -> dict[str, Any]:
        model, version = self._find(request.name, request.version)
        described = describe(
            version.interface,
            model=model.name,
            versions=[version.version],
            platform=version.platform,
            profiles=version.profiles,
        )
        fields = protobuf.message("ModelMetadataResponse").DESCRIPTOR.fields_by_name
        return {key: value for key, value in described.items() if key in fields}

    def _find(self, name: str, wanted: str) -> tuple[ServedModel, ServedVersion]:
        """A model, and its version that answers now.

        Raises:
            BusyError: None does yet.
            RpcError: The model or the version is not served.
        """
        model = self._models.get(name)
        if model is None:
            raise NotServedError(f"The model {show(name)} is not served; served are {', '.join(self._models)}.")
        version = model.current
        if wanted and wanted != version.version:
            raise RpcError(StatusCode.NOT_FOUND, f"Version {show(wanted)} is not served; version {version.version} is.")
        return model, version

    def check_token(self, context: Context) -> None:
        """Compares the call's bearer token, in constant time.

        Raises:
            RpcError: It is another, or missing.
        """
        if self._authorization is None:
            return
        kind, _, token = (_metadata(context, "authorization") or "").partition(" ")
        if not hmac.compare_digest(f"{kind.title()} {token.strip()}".encode(), self._authorization):
            raise RpcError(StatusCode.UNAUTHENTICATED, "A valid bearer token is needed.")


def _code(error: Exception) -> StatusCode:
    if isinstance(error, RpcError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), StatusCode.INTERNAL)


def _route(error: Exception, route: str) -> str:
    """What a call that failed is counted as."""
    return "unknown_model" if isinstance(error, NotServedError) else route


def _metadata(context: Context, name: str) -> str | None:
    """A value of a call's metadata."""
    metadata = next((value for key, value in context.invocation_metadata() or () if key == name), None)
    return metadata if isinstance(metadata, str) else None


async def _abort(context: Context, error: Exception, identifier: str) -> None:
    """Ends a call with an error. What is not ours to tell, the client does not get to see."""
    code = _code(error)
    if code is StatusCode.INTERNAL:
        _logger.error("A call failed", exc_info=error, extra={"request_id": identifier})
    if isinstance(error, TrtError):
        text = str(error.message)
    else:
        text = str(error) if isinstance(error, RpcError) else "The server failed; its log says more."
    if len(encoded := text.encode()) > _LONGEST:
        text = encoded[:_LONGEST].decode(errors="ignore") + "…"
    known = ((access_log.HEADER, identifier),)
    await context.abort(code, text, (*known, *_RETRY) if code is StatusCode.UNAVAILABLE else known)
