"""MLflow's own scoring application before a served model: ``/invocations`` with JSON, CSV and parquet, ``/version``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..loading import as_inputs
from ..runtime.interface import Binder
from .http import Message, Response, Scope

if TYPE_CHECKING:
    from .models import Model, Version

_DROPPED = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Request headers that no longer hold for the decoded body; response headers that are written anew."""


class Scoring:
    """MLflow's application for the version that answers now; it is made once per version, for its signature.

    Args:
        model: What is served.
        timeout: Seconds that a call may take.
    """

    def __init__(self, model: Model, timeout: float) -> None:
        self._model = model
        self._timeout = timeout
        self._version: Version | None = None
        self._app: Any = None
        self._making = asyncio.Lock()

    async def answer(self, scope: Scope, body: bytes) -> Response:
        """Passes a request on.

        Raises:
            BusyError: No version is loaded yet.
        """
        current = self._model.current
        if self._version is not current:
            async with self._making:
                if self._version is not current:
                    self._app = await asyncio.to_thread(_make, self._model, current, self._timeout)
                    self._version = current
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED]
        headers.append((b"content-length", str(len(body)).encode()))
        return await _call(self._app, {**scope, "headers": headers}, body)


class _Impl:
    """The model as MLflow's application calls it: one more caller of the served model's queue."""

    def __init__(self, model: Model, timeout: float) -> None:
        self._model = model
        self._timeout = timeout

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Mapping[str, np.ndarray]:
        current = self._model.current
        given = as_inputs(data, current.interface)
        if not isinstance(given, dict):
            given = Binder(current.interface, current.profiles).named(given)
        _, future = self._model.submit(given, time.monotonic() + self._timeout)
        return future.result().outputs


def _make(model: Model, version: Version, timeout: float) -> Any:
    from mlflow.models import Model as Described
    from mlflow.pyfunc import PyFuncModel, scoring_server

    described = Described.load(version.uri)
    return scoring_server.init(PyFuncModel(described, _Impl(model, timeout), predict_fn="predict"))


async def _call(app: Any, scope: Scope, body: bytes) -> Response:
    """Runs an ASGI application on a body that was read already, and collects its response."""
    status = 500
    headers: dict[str, str] = {}
    parts: list[bytes] = []
    ended = asyncio.Event()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in message["headers"] if n not in _DROPPED}
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    finally:
        ended.set()
    media = headers.pop("content-type", "application/json")
    return Response(status, parts, headers, media)
