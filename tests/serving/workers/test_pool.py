"""Real HTTP workers and real HTTP; the GPU that fetches their requests is a stand-in (tests/standin.py)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import os
import socket
import subprocess
from concurrent.futures import Future

import numpy as np
import pytest
import requests
import standin
from interfaces import interface, tensor

from mlflow_trt.engine import pinned
from mlflow_trt.plan.api import Result
from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.metrics import Metrics
from mlflow_trt.serving.served_model import ServedVersion
from mlflow_trt.serving.workers import pool as worker_pool
from mlflow_trt.serving.workers.pool import WorkerPool

WIDE = 16 << 10
CONFIG = ServerConfig(max_body=1 << 24, timeout=30.0, log_level="warning", access_log=False)
FACE = interface([tensor("x", ("n", WIDE))], [tensor("y", ("n", 1))])


class Held:
    """A model that keeps its requests until the test answers them."""

    name = "m"
    registered_model = None
    current = ServedVersion("models:/m/1", "1", "stand-in", FACE, ())

    def __init__(self):
        self.requests = []

    def status(self):
        return {"name": "m", "state": "ready", "version": "1", "uri": "models:/m/1", "waiting": 0}

    def submit(self, inputs, deadline=None, *, inline=False):
        future = Future()
        future.set_running_or_notify_cancel()
        self.requests.append((inputs["x"], future))
        return future


@pytest.fixture
def cudart(monkeypatch):
    return standin.install(monkeypatch, lambda trt: None).cudart


def run(check, device):
    async def main():
        model = Held()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            pool = WorkerPool(1, listening, {"m": model}, Metrics({}), CONFIG, device)
            await pool.start()
            try:
                await check(model, f"http://127.0.0.1:{port}/v2/models/m/infer", pool)
            finally:
                await pool.stop(5)

    asyncio.run(main())


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not become true")


def post(url, x):
    content = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}
    return asyncio.create_task(asyncio.to_thread(requests.post, url, json=content, timeout=60))


def answer(future, x):
    outputs = Result({"y": x.sum(axis=1, keepdims=True)}, "tensorrt")
    future.set_result(Answer(outputs, Held.current, len(x), len(x), 0.0, 0.0))


def test_a_gpu_may_fetch_requests_from_where_the_front_put_them(cudart):
    async def check(model, url, pool):
        for seed in range(2):
            x = np.random.default_rng(seed).integers(0, 9, (2, WIDE)).astype(np.float32)
            response = post(url, x)
            await until(lambda: model.requests)
            given, future = model.requests.pop()
            assert pinned.address_of(given) is not None
            np.testing.assert_array_equal(given, x)
            answer(future, given)
            assert (await response).json()["outputs"][0]["data"] == x.sum(axis=1).tolist()

    run(check, device=0)


def test_nothing_is_page_locked_without_a_gpu(cudart):
    async def check(model, url, pool):
        response = post(url, np.ones((1, WIDE), np.float32))
        await until(lambda: model.requests)
        given, future = model.requests.pop()
        answer(future, given)
        assert (await response).status_code == 200
        assert not cudart.pinned

    run(check, device=None)


def test_what_a_dead_front_left_stays_locked_while_an_engine_reads_it(cudart):
    async def check(model, url, pool):
        response = post(url, np.ones((1, WIDE), np.float32))
        await until(lambda: model.requests)
        given, future = model.requests.pop()
        pool._workers[0].process.kill()
        with pytest.raises(requests.ConnectionError):
            await response
        await asyncio.sleep(0.3)
        assert pinned.address_of(given) is not None
        answer(future, given)
        await until(lambda: pinned.address_of(given) is None)

    run(check, device=0)
    assert not cudart.pinned


def test_an_answer_says_which_version_it_is_of(cudart):
    """Also one that took over, or is of one that was replaced, before the worker was told so."""

    async def check(model, url, pool):
        x = np.ones((1, WIDE), np.float32)
        versions = [
            dataclasses.replace(Held.current, version=str(n), uri=f"models:/m/{n}") for n in range(1, 6)
        ]  # one more than a worker knows
        waiting = []
        for version in versions:
            model.current = version
            waiting.append((version, post(url, x)))
            await until(lambda: model.requests)
            _, future = model.requests.pop()
            outputs = Result({"y": x.sum(axis=1, keepdims=True)}, "tensorrt")
            waiting[-1] = (*waiting[-1], future, Answer(outputs, version, 1, 1, 0.0, 0.0))
        metadata = url.removesuffix("/infer")
        for version, response, future, answered in reversed(waiting):
            model.current = version
            future.set_result(answered)
            assert (await response).json()["model_version"] == version.version
        assert (await asyncio.to_thread(requests.get, metadata)).json()["versions"] == ["1"]

    run(check, device=None)


def test_what_answers_now_is_known_with_its_first_answer(cudart, monkeypatch):
    monkeypatch.setattr(worker_pool, "_STATE", 30.0)  # until then nobody looks

    async def check(model, url, pool):
        response = post(url, np.ones((1, WIDE), np.float32))
        await until(lambda: model.requests)
        given, future = model.requests.pop()
        model.current = dataclasses.replace(Held.current, version="2", uri="models:/m/2")
        future.set_result(Answer(Result({"y": given[:, :1]}, "tensorrt"), model.current, 1, 1, 0.0, 0.0))
        assert (await response).json()["model_version"] == "2"
        metadata = await asyncio.to_thread(requests.get, url.removesuffix("/infer"), timeout=60)
        assert metadata.json()["versions"] == ["2"]

    run(check, device=None)


@pytest.fixture
def little_memory(monkeypatch):
    """Each area that a worker shares has 1 MiB."""
    monkeypatch.setattr(worker_pool, "SHARED_MEMORY", 1 << 20)


def test_an_answer_that_has_no_room_leaves_none_of_it_behind(cudart, little_memory):
    async def check(model, url, pool):
        async def answered(**outputs):
            response = post(url, np.ones((1, WIDE), np.float32))
            await until(lambda: model.requests)
            _, future = model.requests.pop()
            future.set_result(Answer(Result(outputs, "tensorrt"), Held.current, 1, 1, 0.0, 0.0))
            return (await response).status_code

        y = np.ones((100_000, 1), np.float32)  # a block of half the memory
        for _ in range(3):
            assert await answered(y=y, more=np.ones(1 << 20, np.float32)) == 503
        assert await answered(y=y) == 200

    run(check, device=None)


def test_who_asks_for_figures_while_the_memory_is_full_gets_them_a_little_later(cudart, little_memory):
    async def check(model, url, pool):
        await until(lambda: pool._workers and pool._workers[0]._serves)
        (worker,) = pool._workers
        taken = list(iter(lambda: worker._answers.allocate(4096), None))
        asking = asyncio.create_task(asyncio.to_thread(requests.get, url.partition("/v2")[0] + "/metrics", timeout=60))
        await asyncio.sleep(0.5)
        assert not asking.done()
        for offset in taken:
            worker._answers.free(offset, 4096)
        assert (await asking).status_code == 200
        assert pool._workers == [worker], "it was replaced"

    run(check, device=None)


def test_a_worker_that_the_system_can_t_start_now_is_started_later(cudart, monkeypatch, caplog):
    started = subprocess.Popen
    refusals = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.ENOMEM, "No memory")]

    def popen(*arguments, **options):
        if refusals:
            raise refusals.pop(0)
        return started(*arguments, **options)

    monkeypatch.setattr(worker_pool.subprocess, "Popen", popen)
    monkeypatch.setattr(worker_pool, "_QUICKLY", 0.05)

    async def check(model, url, pool):
        response = post(url, np.ones((1, WIDE), np.float32))
        await until(lambda: model.requests)
        given, future = model.requests.pop()
        answer(future, given)
        assert (await response).status_code == 200

    run(check, device=None)
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["http_worker_not_started"] * 2


def test_one_that_can_t_be_started_leaves_nothing_open(monkeypatch):
    def popen(*arguments, **options):
        raise OSError(errno.ENOMEM, "No memory")

    async def main():
        gc.collect()
        before = os.listdir("/proc/self/fd")
        with contextlib.suppress(OSError):
            worker_pool._Worker({}, Metrics({}), None)
        gc.collect()
        assert os.listdir("/proc/self/fd") == before

    monkeypatch.setattr(worker_pool.subprocess, "Popen", popen)
    asyncio.run(main())
