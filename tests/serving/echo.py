"""A stand-in for ``Model``: its outputs are its inputs. No engine takes all of the protocol's datatypes, and this does.

As a program, ``echo.py PORT MAX_BODY``, it serves that over gRPC until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from mlflow_trt.plan.api import Result
from mlflow_trt.plan.manifest import Branch, Interface, Tensor, TensorLeaf
from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.grpc import server as grpc_server
from mlflow_trt.serving.served_model import ServedVersion

DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES += ("float16", "float32", "float64", "object")


def interface(*tensors: tuple[str, str, str]) -> Interface:
    """An interface of (name, dtype, binding's dtype), whose outputs are its inputs; the shape is for metadata only."""
    found = tuple(
        Tensor(name=name, binding=name, dtype=dtype, binding_dtype=binding, shape=("n",))
        for name, dtype, binding in tensors
    )
    leaves = tuple(TensorLeaf(name=tensor.name) for tensor in found)
    arguments = Branch(kind="tuple", items=(Branch(kind="tuple", items=leaves), Branch(kind="dict", keys=(), items=())))
    return Interface(inputs=found, outputs=found, arguments=arguments, result=Branch(kind="tuple", items=leaves))


class Echo:
    def __init__(self, name: str, *tensors: tuple[str, str, str]) -> None:
        self.name = name
        self.current = ServedVersion("/echo", "7", "echo", interface(*tensors), ())
        self.error: Exception | None = None
        """Raised by the next call, once."""

    def submit(self, inputs: Mapping[str, np.ndarray], deadline: float | None = None) -> Future[Answer]:
        error, self.error = self.error, None
        if error is not None:
            raise error
        future: Future[Answer] = Future()
        future.set_result(Answer(Result(inputs), self.current, 1, 1, 0.0, 0.0))
        return future

    def status(self) -> dict[str, Any]:
        return {"state": "ready"}


def models() -> dict[str, Any]:
    """One for each dtype, one for BF16, and one with two tensors."""
    found = [Echo(dtype, ("x", dtype, dtype)) for dtype in DTYPES]
    found.append(Echo("bfloat16", ("x", "float32", "bfloat16")))
    found.append(Echo("two", ("a", "float32", "float32"), ("b", "int64", "int64")))
    return {model.name: model for model in found}


async def _main(port: int, max_body: int) -> None:
    server = await grpc_server.start(models(), ServerConfig(grpc_port=port, max_body=max_body))
    print("up", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(_main(*map(int, sys.argv[1:])))
