"""What the server's routes answer: the Open Inference Protocol v2, probes, metrics, the API's description."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ...errors import BusyError, TrtError
from ..protocol import json_body
from ..protocol.datatypes import NAMES
from ..protocol.inference_request import InferenceRequest, fit
from ..protocol.metadata import describe
from . import openapi
from .codec import LARGE, MANY
from .request import Body, ClientGone, HttpError, Response

if TYPE_CHECKING:
    from ...plan.manifest import Interface
    from ..batching.queue import Answer
    from .app import RequestContext

EXTENSIONS = ("binary_tensor_data",)
GONE = 499
"""What proxies call a client that closed the connection."""
_UNNOTICED = 0.05
"""Seconds: an answer that comes sooner is not worth watching whether the client still waits for it."""

Handler = Callable[["RequestContext"], Awaitable[Response]]


async def _live(context: RequestContext) -> Response:
    return _json({"live": True})


async def _ready(context: RequestContext) -> Response:
    ready = context.app.ready()
    return _json({"ready": ready}, 200 if ready else 503)


async def _health(context: RequestContext) -> Response:
    # As MLflow's own: 200 if the model is loaded.
    return Response(200 if context.app.ready() else 503, [b"\n"])


async def _server(context: RequestContext) -> Response:
    return _json({"name": "mlflow-trt", "version": __version__, "extensions": EXTENSIONS})


async def _metrics(context: RequestContext) -> Response:
    from ..metrics import MEDIA

    return Response(200, [await asyncio.to_thread(context.app.metrics.text)], media=MEDIA)


async def _openapi(context: RequestContext) -> Response:
    return _json(openapi.document(list(context.app.models)))


async def _metadata(context: RequestContext) -> Response:
    version = context.current()
    described = describe(
        version.interface,
        model=context.served().name,
        versions=[version.version],
        platform=version.platform,
        profiles=version.profiles,
    )
    # The protocol's metadata may hold more: here, what became of the last promotion.
    return _json({**described, "status": context.served().status()})


async def _model_ready(context: RequestContext) -> Response:
    try:
        version = context.current()
    except BusyError:
        return _json({"name": context.served().name, "ready": False}, 503)
    return _json({"name": context.served().name, "version": version.version, "ready": True})


async def _infer(context: RequestContext) -> Response:
    return await counted(context, "http", _infer_body)


async def counted(
    context: RequestContext, protocol: str, answer: Callable[[RequestContext, Body, float], Awaitable[Response]]
) -> Response:
    """Reads an inference request's body, has it answered, and counts it; its time begins with its last byte."""
    context.counted = True
    status = GONE
    begin: float | None = None
    try:
        body = await context.body()
        begin = time.monotonic()
        response = await answer(context, body, begin)
        status = response.status
        return response
    except Exception as error:
        if not isinstance(error, ClientGone):
            status = status_of(error)
        raise
    finally:
        seconds = None if begin is None else time.monotonic() - begin
        context.app.metrics.request(context.served().name, protocol, status, seconds)


async def _infer_body(context: RequestContext, body: Body, begin: float) -> Response:
    model = context.served()
    interface = context.current().interface
    request = await _decode(context, body, interface)
    inputs = fit(request, interface)
    seconds = min(context.app.timeout, request.timeout or context.app.timeout)
    future = model.submit(inputs, begin + seconds, inline=context.app.only(context.scope.get("client")))
    answer = future.result() if future.done() else await _wait(context, future)
    version = answer.version
    if version.interface is not interface:  # another version took over meanwhile
        fit(request, version.interface)
    texts = None
    written = json_body.as_json(request, answer.outputs, version.interface)
    if written and sum(array.size for array in written.values()) > MANY:
        texts = await context.app.codec.texts(written, {t.name: NAMES[t.dtype] for t in version.interface.outputs})
    encoded = json_body.encode(
        request, answer.outputs, version.interface, model=model.name, version=version.version, texts=texts
    )
    if encoded.header_length is None:
        return Response(200, encoded.parts)
    length = str(encoded.header_length)
    return Response(200, encoded.parts, {"inference-header-content-length": length}, media="application/octet-stream")


async def _decode(context: RequestContext, body: Body, interface: Interface) -> InferenceRequest:
    """Reads a request; what takes long is done elsewhere."""
    length = context.headers.number("inference-header-content-length")
    if LARGE < (len(body) if length is None else length) <= len(body):
        return await context.app.codec.decode(body, length)
    parsed = json_body.parse(body, length)
    parsed.check(interface)
    if parsed.is_slow(LARGE):
        return await asyncio.to_thread(json_body.read, parsed)
    return json_body.read(parsed)


async def _wait(context: RequestContext, future: Future[Answer]) -> Answer:
    """Waits for an answer as long as the client does; work that nobody waits for any more is dropped."""
    await _settled(future, _UNNOTICED)
    if not future.done():
        # What follows a body that was read whole is only the end of the connection.
        gone = asyncio.ensure_future(context.receive())
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

    What the event loop's own thread sets, as in an HTTP worker, is seen at once; ``asyncio.wrap_future`` would wake
    that thread from itself, which takes system calls and turns of the loop.
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


FIXED: Mapping[str, Mapping[str, Handler]] = {
    "/v2": {"GET": _server},
    "/v2/": {"GET": _server},
    "/v2/health/live": {"GET": _live, "HEAD": _live},
    "/v2/health/ready": {"GET": _ready, "HEAD": _ready},
    "/ping": {"GET": _health},
    "/health": {"GET": _health},
    "/metrics": {"GET": _metrics},
    "/openapi.json": {"GET": _openapi},
}
OF_MODEL: Mapping[str, Mapping[str, Handler]] = {
    "": {"GET": _metadata},
    "ready": {"GET": _model_ready},
    "infer": {"POST": _infer},
}


def _json(content: Any, status: int = 200) -> Response:
    return Response(status, [json.dumps(content).encode()])


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HttpError):
        return error.status
    return int(error.get_http_status_code()) if isinstance(error, TrtError) else 500  # type: ignore[no-untyped-call]
