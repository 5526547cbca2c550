"""A gRPC server in a thread of this process, clients that call it, and an engine that waits until it is told."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from mlflow_trt.plan.api import Result
from mlflow_trt.plan.manifest import Interface, Profile, ShapeRange
from mlflow_trt.serving.batching.batcher import Batcher
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.grpc import server as grpc_server
from mlflow_trt.serving.metrics import Metrics
from mlflow_trt.serving.protocol import protobuf

from .. import echo

client_module = pytest.importorskip("tritonclient.grpc")
aio_module = pytest.importorskip("tritonclient.grpc.aio")
InferenceServerException = client_module.InferenceServerException


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(models: Mapping[str, Any], metrics: Metrics | None = None, **settings: Any) -> Iterator[str]:
    """A server in a thread's event loop, as long as the block lasts; gives its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    port = free_port()
    try:
        server = asyncio.run_coroutine_threadsafe(
            grpc_server.start(models, ServerConfig(grpc_port=port, **settings), metrics=metrics), loop
        ).result(30)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@contextmanager
def calling(address: str, **settings: Any) -> Iterator[Any]:
    with client_module.InferenceServerClient(address, **settings) as client:
        yield client


def raw_call(address: str, method: str, request: bytes, **settings: Any) -> tuple[Any, Any]:
    """Calls without Triton's client: what it would not send, and what it does not show."""
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(f"/{protobuf.SERVICE}/{method}").with_call(request, timeout=30, **settings)


def tensor(name: str, array: np.ndarray, datatype: str | None = None) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    made = client_module.InferInput(name, array.shape, datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def refused(call: Callable[[], Any], code: str) -> str:
    """What an error says that has this code."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == f"StatusCode.{code}"
    return str(caught.value.message())


def eventually(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def request_of(model: str) -> bytes:
    message = protobuf.ModelInferRequest(model_name=model, raw_input_contents=[bytes(8)])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    return bytes(message.SerializeToString())


def number(value: float) -> Any:
    return tensor("x", np.float32([value]))


class Gate:
    """An engine that answers once it is let."""

    interface: Interface = echo.interface(("x", "float32", "float32"))
    profiles: tuple[Profile, ...] = ({"x": ShapeRange(min=(1,), opt=(1,), max=(8,))},)
    backend = "reference"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.seen: list[float] = []

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Result:
        self.seen.append(float(inputs["x"][0]))
        assert self.open.wait(30)
        return Result(inputs)


class Slow(echo.Echo):
    """A real batcher, which calls a gate with one request at a time."""

    def __init__(self) -> None:
        super().__init__("slow", ("x", "float32", "float32"))
        self.gate = Gate()
        self.batcher = Batcher([self.gate], self.current, workers=1, batching=False)  # type: ignore[list-item]

    def submit(self, inputs: Mapping[str, np.ndarray], deadline: float | None = None) -> Any:
        return self.batcher.submit(inputs, deadline)
