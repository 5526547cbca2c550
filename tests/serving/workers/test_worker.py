"""A model of another process, as an HTTP worker sees it; that process is the test's own, across a socket pair."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from contextlib import asynccontextmanager

import numpy as np
import pytest
from interfaces import interface, tensor

from mlflow_trt.errors import BusyError, InputError
from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.error_parts import ErrorParts
from mlflow_trt.serving.served_model import ServedVersion
from mlflow_trt.serving.workers import messages
from mlflow_trt.serving.workers.ipc import IpcConnection
from mlflow_trt.serving.workers.shared_memory import SharedMemory, create
from mlflow_trt.serving.workers.worker import EngineProcess, RemoteMetrics

SIZE = 1 << 20
VERSION = ServedVersion("models:/m/1", "1", "stand-in", interface([tensor("x", ("n", 2))], [tensor("y", ("n", 2))]), ())
X = np.array([[1.0, 2.0]], np.float32)


class Other:
    """The process that holds the engines: what it was told, and the memory that it shares."""

    def __init__(self, requests, answers):
        self.requests, self.answers = requests, answers
        self.told = []

    def send(self, *sent):
        for message in sent:
            self.ipc.send(message)

    async def next(self, kind):
        """The next message of a kind."""
        await until(lambda: any(isinstance(message, kind) for message in self.told))
        found = next(message for message in self.told if isinstance(message, kind))
        self.told.remove(found)
        return found

    def place(self, name, array):
        offset = self.answers.allocate(array.nbytes)
        self.answers.array(offset, array.dtype.name, array.shape)[...] = array
        return (name, array.dtype.name, array.shape, offset)


@asynccontextmanager
async def both():
    """A worker's view of the other process, and that."""
    descriptors = [create(SIZE), create(SIZE)]
    memories = [SharedMemory(descriptor, SIZE) for descriptor in descriptors for _ in range(2)]
    ends = socket.socketpair()
    engines = EngineProcess(memories[0], memories[2])
    other = Other(memories[1], memories[3])
    other.ipc = await IpcConnection.open(ends[0], other.told.append, lambda: None)
    other.send(
        messages.VersionLoaded("m", VERSION),
        messages.ModelStatus("m", "m", {"name": "m", "state": "ready"}, "1"),
        messages.Configure(ServerConfig(port=1234)),
    )
    try:
        assert (await engines.connect(ends[1])).port == 1234
        yield engines, other
    finally:
        other.ipc.close()
        await engines.gone.wait()
        for descriptor in descriptors:
            os.close(descriptor)


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not become true")


def with_both(test):
    """Runs a test of both in an event loop."""

    def run():
        async def main():
            async with both() as (engines, other):
                await test(engines, other)

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


# --- what is known of a model ---


@with_both
async def test_a_model_is_as_it_was_told(engines, other):
    model = engines.models["m"]
    assert (model.name, model.registered_model, model.current) == ("m", "m", VERSION)
    assert model.status() == {"name": "m", "state": "ready"}
    other.send(messages.ModelStatus("m", None, {"name": "m", "state": "failed"}, None))
    await until(lambda: model.status()["state"] == "failed")
    with pytest.raises(BusyError, match="m is not loaded yet"):
        _ = model.current
    with pytest.raises(BusyError):
        model.submit({"x": X})
    assert other.told == []


@with_both
async def test_a_model_that_was_named_but_not_loaded_is_loading(engines, other):
    other.send(messages.ModelStatus("late", None, {"name": "late", "state": "loading"}, None))
    await until(lambda: "late" in engines.models)
    assert engines.models["late"].status()["state"] == "loading"


@with_both
async def test_of_many_versions_the_latest_are_known(engines, other):
    versions = [dataclasses.replace(VERSION, version=str(n)) for n in range(2, 7)]
    other.send(*(messages.VersionLoaded("m", version) for version in versions))
    model = engines.models["m"]
    await until(lambda: "6" in model._versions)
    assert list(model._versions) == ["3", "4", "5", "6"]
    other.send(messages.VersionLoaded("m", versions[1]), messages.VersionLoaded("m", VERSION))
    await until(lambda: "1" in model._versions)
    assert list(model._versions) == ["5", "6", "3", "1"], "what was told of again is the latest"


@with_both
async def test_the_registry_is_looked_at_when_asked(engines, other):
    engines.models["m"].refresh()
    assert await other.next(messages.Refresh) == messages.Refresh("m")


# --- requests ---


@with_both
async def test_a_request_and_its_answer_cross_in_shared_memory(engines, other):
    future = engines.models["m"].submit({"x": X}, 12.5)
    asked = await other.next(messages.Infer)
    ((name, dtype, shape, offset),) = asked.inputs
    assert (asked.model, asked.deadline, name) == ("m", 12.5, "x")
    np.testing.assert_array_equal(other.requests.array(offset, dtype, shape), X)
    other.send(messages.InferenceAnswer(asked.id, "1", "tensorrt", [other.place("y", 2 * X)], 1, 8, 0.25, 0.5))
    answer = await asyncio.wrap_future(future)
    np.testing.assert_array_equal(answer.outputs["y"], 2 * X)
    assert (answer.outputs.backend, answer.version) == ("tensorrt", VERSION)
    assert (answer.rows, answer.batch, answer.queued, answer.computed) == (1, 8, 0.25, 0.5)
    freed = await other.next(messages.FreeBlock)
    other.answers.free(freed.offset, freed.nbytes)
    assert other.place("y", X)[3] == freed.offset
    other.answers.array(freed.offset, "float32", (1, 2))[...] = 0
    np.testing.assert_array_equal(answer.outputs["y"], 2 * X)  # a copy


@with_both
async def test_answers_in_any_order_reach_those_who_asked(engines, other):
    futures = [engines.models["m"].submit({"x": X + n}) for n in range(5)]
    asked = [await other.next(messages.Infer) for _ in futures]
    for infer in reversed(asked):
        ((_, dtype, shape, offset),) = infer.inputs
        x = other.requests.array(offset, dtype, shape).copy()
        other.send(messages.InferenceAnswer(infer.id, "1", "tensorrt", [other.place("y", x)], 1, 1, 0.0, 0.0))
    for n, future in enumerate(futures):
        np.testing.assert_array_equal((await asyncio.wrap_future(future)).outputs["y"], X + n)


@with_both
async def test_an_error_is_that_of_the_other_process(engines, other):
    future = engines.models["m"].submit({"x": X})
    asked = await other.next(messages.Infer)
    error = InputError("It is wrong.", "right", "do it")
    other.send(messages.RequestFailed(asked.id, ErrorParts.of(error)))
    with pytest.raises(InputError) as caught:
        await asyncio.wrap_future(future)
    assert str(caught.value) == str(error)
    assert not engines._pending


@with_both
async def test_what_is_cancelled_holds_its_memory_until_the_other_process_lets_go(engines, other):
    model = engines.models["m"]
    future = model.submit({"x": X})
    asked = await other.next(messages.Infer)
    assert future.cancel()
    assert await other.next(messages.Cancel) == messages.Cancel(asked.id)
    first = asked.inputs[0][3]
    model.submit({"x": X})
    assert (await other.next(messages.Infer)).inputs[0][3] != first, "an engine may still read it"
    other.send(messages.RequestFailed(asked.id, ErrorParts("TrtError", "The request was dropped.", "", "")))
    await until(lambda: asked.id not in engines._pending)
    model.submit({"x": X})
    assert (await other.next(messages.Infer)).inputs[0][3] == first


@with_both
async def test_an_answer_that_crosses_with_its_cancellation_is_given_back(engines, other):
    future = engines.models["m"].submit({"x": X})
    asked = await other.next(messages.Infer)
    assert future.cancel()
    other.send(messages.InferenceAnswer(asked.id, "1", "tensorrt", [other.place("y", X)], 1, 1, 0.0, 0.0))
    assert (await other.next(messages.FreeBlock)).nbytes == X.nbytes
    assert not engines._pending


@with_both
async def test_where_the_memory_is_full_nothing_is_kept_of_a_request(engines, other):
    model = engines.models["m"]
    half = np.zeros(SIZE // 8, np.float32)
    for _ in range(3):
        with pytest.raises(BusyError, match="memory for requests is full"):
            model.submit({"a": half, "b": half, "c": half})
    model.submit({"a": half, "b": half})
    assert len((await other.next(messages.Infer)).inputs) == 2
    assert not other.told


# --- what is counted ---


@with_both
async def test_the_other_process_counts(engines, other):
    metrics = RemoteMetrics(engines)
    metrics.request("m", "http", 200, 0.5)
    metrics.other("/v2", "http", 404)
    metrics.cut("idle_time")
    assert await other.next(messages.CutCount) == messages.CutCount("idle_time")
    assert other.told == [messages.InferenceCount("m", "http", 200, 0.5), messages.OtherCount("/v2", "http", 404)]
    asking = asyncio.create_task(asyncio.to_thread(metrics.text))
    asked = await other.next(messages.MetricsQuery)
    other.send(messages.MetricsText(asked.id, other.place("text", np.frombuffer(b"figures 1\n", np.uint8))))
    assert await asking == b"figures 1\n"


@with_both
async def test_it_is_told_that_the_server_drains(engines, other):
    drained = asyncio.Event()
    engines.on_drain = drained.set
    other.send(messages.Drain())
    await asyncio.wait_for(drained.wait(), 20)
