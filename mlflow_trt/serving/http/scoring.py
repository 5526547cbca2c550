"""MLflow's own scoring application before a served model: ``/invocations`` with JSON and parquet, ``/version``.

CSV it reads for signatures of columns only, not of tensors. It is made of what the version was loaded with, so that it
answers while the registry is away. Large bodies are read in a process of their own, see :mod:`.codec`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ...errors import ManifestError
from ...flavor.load import as_inputs
from ...plan.signature import CallSignature
from ..protocol.datatypes import elements_of
from .codec import LARGE, MANY, Codec
from .codec_messages import Arrays
from .request import Body, HttpError, Message, Response, Scope

if TYPE_CHECKING:
    from ..served_model import ServedModel, ServedVersion

_DROPPED = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Request headers that no longer hold for the decoded body; response headers that are written anew."""
_TOLD = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
"""What of a request another process is told, beside its headers."""
_ROUTES = frozenset({"/invocations", "/version"})
"""What clients ask MLflow's application for."""


class Scoring:
    """MLflow's application for the version that answers now; it is made once per version, for its signature.

    Args:
        model: What is served.
        timeout: Seconds that a call may take.
        codec: Reads large bodies.
    """

    def __init__(self, model: ServedModel, timeout: float, codec: Codec) -> None:
        self._model = model
        self._timeout = timeout
        self._codec = codec
        self._version: ServedVersion | None = None
        self._app: Any = None
        self._making = asyncio.Lock()

    @property
    def name(self) -> str:
        """The model's."""
        return self._model.name

    async def answer(self, scope: Scope, body: Body) -> Response:
        """Passes a request on.

        Raises:
            BusyError: No version is loaded yet.
            ManifestError: The model has no MLmodel file.
            HttpError: It has none, and would have no such route with one either.
        """
        current = self._model.current
        if current.mlmodel is None and scope["path"] not in _ROUTES:
            raise HttpError(404, "There is no such route.")
        if self._version is not current:
            async with self._making:
                if self._version is not current:
                    self._app = await asyncio.to_thread(application, current, self._ask)
                    self._version = current
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED]
        headers.append((b"content-length", str(len(body)).encode()))
        if len(body) <= LARGE:
            return await call(self._app, {**scope, "headers": headers}, bytes(body))
        told = {key: scope[key] for key in _TOLD if key in scope}
        return await self._codec.invocations(current, {**told, "headers": headers}, body, self._ask)

    def _ask(self, inputs: Arrays) -> Arrays:
        return self._model.submit(inputs, time.monotonic() + self._timeout).result().outputs


class _Impl:
    """The model as MLflow's application calls it: one more caller of the served model's queue."""

    def __init__(self, version: ServedVersion, ask: Callable[[Arrays], Arrays]) -> None:
        self._interface = version.interface
        self._call_signature = CallSignature(version.interface, version.profiles)
        self._ask = ask

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        given = as_inputs(data, self._interface)
        if not isinstance(given, dict):
            given = self._call_signature.named(given)
        checked = self._call_signature.check(given)
        outputs = self._ask(dict(zip(self._call_signature.names, checked.arrays)))
        return {name: nested(array) for name, array in outputs.items()}


def nested(array: np.ndarray) -> Any:
    """An array as nested lists; NaN and infinities as :func:`.datatypes.elements_of` has them.

    Not all at once: nothing else could run meanwhile.
    """
    if not array.ndim:
        return elements_of(array.reshape(1))[0]
    if array.size <= MANY and (array.dtype.kind != "f" or np.isfinite(array).all()):
        return array.tolist()
    if array.ndim > 1:
        return [nested(row) for row in array]
    return [value for begin in range(0, len(array), MANY) for value in elements_of(array[begin : begin + MANY])]


def application(version: ServedVersion, ask: Callable[[Arrays], Arrays]) -> Any:
    """Returns MLflow's application.

    Args:
        version: What it answers for.
        ask: Has the model answer; called in threads.

    Raises:
        ManifestError: The version has no MLmodel file.
    """
    from mlflow.models import Model as Logged
    from mlflow.pyfunc import PyFuncModel, scoring_server

    if version.mlmodel is None:
        raise ManifestError(
            f"{version.uri} has no MLmodel file.",
            "a model as MLflow logs it, for MLflow's own routes",
            "log it with mlflow_trt.log_model, or ask /v2/models/NAME/infer",
        )
    logged = Logged.from_dict(yaml.safe_load(version.mlmodel))
    return scoring_server.init(PyFuncModel(logged, _Impl(version, ask), predict_fn="predict"))


async def call(app: Any, scope: Scope, body: bytes) -> Response:
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
