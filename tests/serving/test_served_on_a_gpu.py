"""Real engines that take each other's place: warm from the first request on, and gone from the GPU when replaced."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest

import mlflow_trt
from mlflow_trt.engine import cuda
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.versions.served import Model

from .registered import eventually, no_threads_left
from .running import served

__all__ = ["no_threads_left"]

pytestmark = pytest.mark.gpu

NAME = "swapped"


def network(seed):
    import torch

    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


@pytest.fixture
def versions():
    """Two versions that differ in their weights."""
    inputs = [mlflow_trt.Input(((1, 4, 8), 3, 64, 64))]
    made = [
        mlflow_trt.log_model(network(seed), "m", inputs, precision="fp16", registered_model_name=NAME)
        for seed in (1, 2)
    ]
    return [str(info.registered_model_version) for info in made]


@pytest.fixture
def serve(no_threads_left):
    started = []

    def start(uri, **options):
        model = Model("m", uri, LoadOptions(**options), interval=0.05)
        started.append(model)
        model.start()
        model.wait(300)
        return model

    yield start
    for model in started:
        model.close()


def point(version):
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", version)


def images(rows, seed=None):
    random = np.random.default_rng(rows if seed is None else seed)
    return {"input": random.standard_normal((rows, 3, 64, 64)).astype(np.float32)}


def used():
    previous = cuda.enter(0)
    try:
        free, total = cuda.memory()
    finally:
        cuda.leave(previous)
    return total - free


@pytest.mark.alone
def test_the_first_requests_find_everything_warm(versions, serve):
    model = serve(f"models:/{NAME}/{versions[0]}", max_contexts=2)
    [engine] = model.loaded.engines
    assert model.current.platform.startswith("tensorrt")
    assert model.loaded.batcher.sizes == (1, 2, 4, 8)
    warm = engine.memory["lanes"]
    assert warm == 2 * 4  # every batch size in both contexts

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: model.submit(images(1 + n % 3)).result(60), range(200)))

    assert all(next(iter(answer.outputs.values())).shape[0] == 1 + n % 3 for n, answer in enumerate(found))
    assert engine.memory["lanes"] == warm


@pytest.mark.alone
def test_moves_under_load_leave_no_memory_behind(versions, serve):
    point(versions[0])
    model = serve(f"models:/{NAME}@champion", max_queue=10_000)
    end = threading.Event()
    digests = {version: mlflow_trt.inspect(f"models:/{NAME}/{version}").plans[0].file.sha256 for version in versions}

    def hammer(rows):
        while not end.is_set():
            answer = model.submit(images(rows)).result(60)
            assert answer.outputs.plan == digests[answer.version.version]

    after = []
    with ThreadPoolExecutor(4) as threads:
        callers = [threads.submit(hammer, rows) for rows in (1, 2, 3, 8)]
        try:
            for swaps in range(1, 11):
                version = versions[swaps % 2]
                point(version)
                eventually(lambda version=version: model.current.version == version, "the alias is followed", 120)
                # The next version is begun only after the old one is gone.
                eventually(lambda: model.status()["unloading"] is None, "the old version is unloaded", 60)
                after.append(used())
        finally:
            end.set()
        for caller in callers:
            caller.result(60)
    assert model.status()["swaps"] == 10
    assert model.status()["failures"] == 0
    assert after[-1] <= after[0] * 1.05, after


def test_what_http_workers_read_gets_its_own_answer(versions, serve, tmp_path):
    """The GPU fetches images from the HTTP workers' memory, each client's own."""
    uri = f"models:/{NAME}/{versions[0]}"
    [engine] = serve(uri).loaded.engines
    given = [(n, images(1 + n % 3, seed=n)) for n in range(60)]
    wanted = {n: next(iter(engine.predict(x).values())) for n, x in given}

    def ask(server, x):
        tensor = {"name": "input", "datatype": "FP32", "shape": x["input"].shape, "data": x["input"].ravel().tolist()}
        [output] = server.infer({"inputs": [tensor]}).json()["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    with (
        served(tmp_path, "--model", f"m={uri}", "--http-processes", "2", backend="tensorrt") as server,
        ThreadPoolExecutor(16) as threads,
    ):
        found = {n: threads.submit(ask, server, x) for n, x in given}
        for n, answer in found.items():
            np.testing.assert_allclose(answer.result(60), wanted[n], rtol=2e-2, atol=2e-3)
        assert "can't be page-locked" not in server.log.read_text()


def test_two_gpus_answer_from_one_queue(versions, serve, monkeypatch):
    if cuda.device_count()[0] < 2:
        pytest.skip("needs two GPUs")
    model = serve(f"models:/{NAME}/{versions[0]}", devices=(0, 1), max_contexts=1)
    engines = model.loaded.engines
    assert [engine.device for engine in engines] == [0, 1]
    wanted = {rows: engines[0].predict(images(rows)) for rows in (1, 2, 3)}
    calls = Counter()

    def counted(engine, way):
        run = getattr(engine, way)

        def call(*arguments):
            calls[engine.device] += 1
            return run(*arguments)

        return call

    for engine in engines:
        for way in ("predict", "predict_stacked"):
            monkeypatch.setattr(engine, way, counted(engine, way))
    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(lambda n: model.submit(images(1 + n % 3)).result(60), range(600)))

    for n, answer in enumerate(found):
        for name, array in wanted[1 + n % 3].items():
            np.testing.assert_allclose(answer.outputs[name], array, rtol=2e-2, atol=2e-3)
    assert min(calls[0], calls[1]) > 20, calls
