"""The gRPC server: how much it takes, from how many, and how it ends; called by NVIDIA's own client."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mlflow_trt.errors import StoreError
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.grpc import server as grpc_server
from mlflow_trt.serving.limits import Limits
from mlflow_trt.serving.protocol import protobuf

from .. import echo
from .calling import Slow, aio_module, calling, eventually, free_port, number, refused, request_of, serving, tensor


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(echo.models()) as address:
        yield address


# --- sizes ---


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: Any, algorithm: str) -> None:
    array = np.zeros((1, 3, 224, 224), np.float32)
    array[0, 0, 0] = np.arange(224)
    found = client.infer("float32", [tensor("x", array)], compression_algorithm=algorithm).as_numpy("x")
    np.testing.assert_array_equal(found, array)


def test_messages_beyond_grpcs_default_limit(client: Any) -> None:
    array = np.random.default_rng(0).integers(0, 255, 20 << 20, np.uint8)
    assert client.infer("uint8", [tensor("x", array)]).as_numpy("x").tobytes() == array.tobytes()


def test_too_large(address: str) -> None:
    x = tensor("x", np.zeros(100_000, np.uint8))
    with serving(echo.models(), max_body=100_000) as small, calling(small) as client:
        for algorithm in (None, "gzip", "deflate"):
            refused(partial(client.infer, "uint8", [x], compression_algorithm=algorithm), "RESOURCE_EXHAUSTED")
        assert client.infer("uint8", [tensor("x", np.zeros(90_000, np.uint8))]) is not None


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """The most bytes that a process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


@contextmanager
def apart(max_body: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The echo in a process of its own, and in uvloop's event loop; gives its address too."""
    port = free_port()
    command = [sys.executable, "-m", echo.__name__, str(port), str(max_body)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield f"127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_compressed_body_does_not_fill_the_memory() -> None:
    with apart(1 << 20) as (address, process), calling(address) as client:
        small = tensor("x", np.zeros(500_000, np.uint8))
        client.infer("uint8", [small], compression_algorithm="gzip")
        before = peak_memory(process)
        bomb = tensor("x", np.zeros(128 << 20, np.uint8))
        refused(lambda: client.infer("uint8", [bomb], compression_algorithm="gzip"), "RESOURCE_EXHAUSTED")
        assert peak_memory(process) - before < 32 << 20
        assert client.infer("uint8", [small]).as_numpy("x").shape == (500_000,)


# --- numbers and deadlines ---


def test_a_flood_of_calls_is_answered() -> None:
    """By itself gRPC ends some of over 1000 that nobody has looked at, as CANCELLED, which no client tries again."""
    data = request_of("float32")
    with apart(1 << 20) as (address, _), grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer")
        calls = [infer.future(data, timeout=60) for _ in range(6000)]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_connections_have_a_number_and_deadlines() -> None:
    data = request_of("float32")
    limits = Limits(max_connections=2, idle_timeout=0.1, header_timeout=0.5)
    with serving(echo.models(), limits=limits) as address:
        host, _, port = address.rpartition(":")

        def closed_after(first: bytes) -> float:
            with socket.create_connection((host, int(port)), timeout=20) as raw:
                raw.sendall(first)
                begin = time.monotonic()
                while raw.recv(1 << 16):
                    pass
                return time.monotonic() - begin

        assert closed_after(b"") < 10
        settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
        assert closed_after(settings) < 10
        alone = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.insecure_channel(address, options=alone) for _ in range(3)]
        try:
            infer = [channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer") for channel in channels]
            for call in infer[:2]:
                call(data, timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                infer[2](data, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            channels[2].close()
            time.sleep(
                grpc_server.IDLE * limits.idle_timeout + 0.5
            )  # the others are told that they were idle, and come again
            for call in infer[:2]:
                call(data, timeout=10, wait_for_ready=True)
        finally:
            for channel in channels:
                channel.close()


# --- its beginning and its end ---


def test_a_port_that_is_taken(address: str) -> None:
    async def start() -> None:
        await grpc_server.start({}, ServerConfig(grpc_port=int(address.rpartition(":")[2])))

    with pytest.raises(StoreError, match="Nothing listens on"):
        asyncio.run(start())


def test_stopping_waits_for_calls_under_way(slow: Slow) -> None:
    async def run() -> None:
        port = free_port()
        server = await grpc_server.start({"slow": slow}, ServerConfig(grpc_port=port))
        async with aio_module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            call = asyncio.create_task(client.infer("slow", [number(1)]))
            await asyncio.to_thread(eventually, lambda: slow.batcher.depth == 1)
            stop = asyncio.create_task(server.stop(30))
            await asyncio.sleep(0.1)
            slow.gate.open.set()
            assert (await call).as_numpy("x").tolist() == [1]
            await stop

    asyncio.run(run())
