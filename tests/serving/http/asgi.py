"""The server's HTTP application without sockets, called as an ASGI server calls it; its models do as they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
from interfaces import interface, tensor

from mlflow_trt.errors import BusyError
from mlflow_trt.plan.api import Result
from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.http.app import Application
from mlflow_trt.serving.served_model import ServedVersion
from mlflow_trt.serving.shutdown import Shutdown

FACE = interface([tensor("x", ("n", 2))], [tensor("y", ("n", 2))])
VERSION = ServedVersion("models:/m/3", "3", "stand-in", FACE, ())
CLIENT = ("192.0.2.1", 50_000)
ASKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


class Doubling:
    """A model: y = 2 x; or it waits, raises, or is not there, as it is told."""

    registered_model: str | None = None

    def __init__(self, name: str = "m", **status: Any) -> None:
        self.name = name
        self.version: ServedVersion | None = VERSION
        self.more = status
        self.error: Exception | None = None
        self.held = False
        self.submitted: list[tuple[Future[Answer], float | None, bool]] = []
        self.refreshed = 0

    @property
    def current(self) -> ServedVersion:
        if self.version is None:
            raise BusyError(f"The model {self.name} is being loaded.")
        return self.version

    def status(self) -> dict[str, Any]:
        return {"name": self.name, "state": "ready" if self.version else "loading", **self.more}

    def refresh(self) -> None:
        self.refreshed += 1

    def submit(self, inputs: Any, deadline: float | None = None, *, inline: bool = False) -> Future[Answer]:
        if self.error is not None:
            raise self.error
        future: Future[Answer] = Future()
        self.submitted.append((future, deadline, inline))
        if not self.held:
            future.set_result(self.answer(inputs["x"]))
        return future

    def answer(self, x: np.ndarray) -> Answer:
        return Answer(Result({"y": 2 * x}, "stand-in"), self.current, len(x), len(x), 0.0, 0.0)


@dataclass
class Counts:
    """What was counted, instead of :class:`mlflow_trt.serving.metrics.Metrics`."""

    requests: list[tuple[str, str, int | str, bool]] = field(default_factory=list)
    """Model, protocol, status, and whether there was a time."""
    others: list[tuple[str, str, int | str]] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)

    def request(self, model: str, protocol: str, status: int | str, seconds: float | None) -> None:
        self.requests.append((model, protocol, status, seconds is not None))

    def other(self, route: str, protocol: str, status: int | str) -> None:
        self.others.append((route, protocol, status))

    def cut(self, limit: str) -> None:
        self.cuts.append(limit)

    def text(self) -> bytes:
        return b"figures 1\n"


@dataclass
class Received:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Face:
    """An application and what is around it."""

    def __init__(self, *models: Doubling, **settings: Any) -> None:
        self.models = models or (Doubling(),)
        self.counts = Counts()
        self.shutdown = Shutdown()
        named = {model.name: model for model in self.models}
        self.app = Application(named, self.counts, ServerConfig(**settings), self.shutdown)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Received:
        return asyncio.run(self.asking(method, path, body, **headers))

    async def asking(
        self, method: str, path: str, body: bytes = b"", *, gone: asyncio.Event | None = None, **headers: str
    ) -> Any:
        """Asks; ``gone``: when the client closes the connection. None: it got no response."""
        messages: list[Any] = []
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            for message in whole:
                return message
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        raw = path.partition("?")[0]
        scope = {
            **{"type": "http", "method": method, "path": unquote(raw), "raw_path": raw.encode(), "client": CLIENT},
            **{"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "state": {}},
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        await self.app(scope, receive, send)
        if not messages:
            return None
        start, *bodies = messages
        found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Received(start["status"], found, b"".join(bytes(body["body"]) for body in bodies))

    def infer(self, content: Any = ASKED, **headers: str) -> Received:
        return self.ask("POST", "/v2/models/m/infer", json.dumps(content).encode(), **headers)


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not become true")
