"""Calls whose time is over, or whose client is gone: what waits for them is dropped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

from mlflow_trt.serving.metrics import Metrics

from .calling import Slow, aio_module, calling, eventually, number, refused, serving


def test_the_clients_timeout_parameter(slow: Slow) -> None:
    with serving({"slow": slow}) as address, calling(address) as client:
        text = refused(lambda: client.infer("slow", [number(1)], timeout=50_000), "DEADLINE_EXCEEDED")
        assert "The request's time was over" in text  # the server's word, not the client's own
        eventually(lambda: slow.batcher.depth == 0)


def test_the_servers_timeout(slow: Slow) -> None:
    with serving({"slow": slow}, timeout=0.05) as address, calling(address) as client:
        text = refused(lambda: client.infer("slow", [number(1)], timeout=50_000_000), "DEADLINE_EXCEEDED")
        assert "The request's time was over" in text


def test_work_whose_client_ran_out_of_time_is_dropped(slow: Slow) -> None:
    with serving({"slow": slow}) as address, calling(address) as client:
        refused(lambda: client.infer("slow", [number(1)], client_timeout=0.1), "DEADLINE_EXCEEDED")
        eventually(lambda: slow.batcher.depth == 0)
        slow.gate.open.set()
        assert client.infer("slow", [number(2)]).as_numpy("x").tolist() == [2]
    assert slow.gate.seen == [0, 2]


def test_cancelled_work_is_dropped(slow: Slow) -> None:
    models = {"slow": slow}
    metrics = Metrics({})
    ended: list[Any] = []
    with serving(models, metrics=metrics) as address, calling(address) as client:
        call = client.async_infer("slow", [number(1)], lambda result, error: ended.append(error))
        eventually(lambda: slow.batcher.depth == 1)
        call.cancel()
        eventually(lambda: slow.batcher.depth == 0)
        eventually(lambda: ended)
        assert ended[0].status() == "StatusCode.CANCELLED"
        slow.gate.open.set()
        assert client.infer("slow", [number(2)]).as_numpy("x").tolist() == [2]
    assert slow.gate.seen == [0, 2]
    text = metrics.text().decode()
    assert 'mlflow_trt_requests_total{model="slow",protocol="grpc",status="CANCELLED"} 1.0' in text
    assert 'mlflow_trt_requests_total{model="slow",protocol="grpc",status="OK"} 1.0' in text


def test_a_cancelled_task_of_the_asyncio_client(slow: Slow) -> None:
    async def call(address: str) -> None:
        async with aio_module.InferenceServerClient(address) as client:
            task = asyncio.create_task(client.infer("slow", [number(1)]))
            await asyncio.to_thread(eventually, lambda: slow.batcher.depth == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(eventually, lambda: slow.batcher.depth == 0)

    with serving({"slow": slow}) as address:
        asyncio.run(call(address))


def test_a_client_that_goes_away(slow: Slow) -> None:
    code = (
        "import sys, numpy, tritonclient.grpc as t; x = t.InferInput('x', [1], 'FP32');"
        "x.set_data_from_numpy(numpy.float32([1])); t.InferenceServerClient(sys.argv[1]).infer('slow', [x])"
    )
    with serving({"slow": slow}) as address:
        process = subprocess.Popen([sys.executable, "-c", code, address])
        try:
            eventually(lambda: slow.batcher.depth == 1)
        finally:
            process.kill()
            process.wait()
        eventually(lambda: slow.batcher.depth == 0)
