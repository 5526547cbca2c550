"""A version takes the place of another while requests come in, or at the last moment does not."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend runs with it")

from mlflow_trt import InputError
from mlflow_trt.errors import BusyError
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.versions import served

from .registered import (
    NEVER,
    answer,
    ask,
    engines,
    events,
    eventually,
    loading_the_second,
    log,
    no_threads_left,
    proxy,
    registry,
    rows,
    serve,
    serves,
    settled,
    slow,
)

__all__ = ["engines", "log", "no_threads_left", "registry", "serve", "slow"]


# --- The alias moves while a version is made ready.


def test_a_version_from_which_the_alias_was_taken_away_answers_not_once(registry, serve, slow, engines, log):
    model = loading_the_second(registry, serve, slow)
    eventually(lambda: model.status()["preparing"] == f"models:/{registry.name}/2", "it is being prepared")
    registry.point("1")
    slow.go_on.set()
    eventually(lambda: "dropped" in events(log), "it is dropped")
    settled(model, lambda status: True)
    assert ask(model)[0] == "1"
    assert model.status()["swaps"] == model.status()["failures"] == 0
    assert len(engines.open) == 1


def test_the_last_moment_counts(registry, serve, engines, log, monkeypatch):
    """The alias goes back when the version is all but served, between two looks at the registry."""
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri, interval=NEVER)
    load_version = served.load_version

    def and_then_back(*args, **kwargs):
        version = load_version(*args, **kwargs)
        registry.point("1")
        return version

    monkeypatch.setattr(served, "load_version", and_then_back)
    registry.point(second)
    model.refresh()
    eventually(lambda: "dropped" in events(log), "it is dropped")
    assert "serving" not in events(log)[2:]
    assert ask(model)[0] == "1"
    eventually(lambda: len(engines.open) == 1, "it is unloaded")


def test_a_registry_that_hangs_at_the_last_moment_does_not_keep_a_version_back(registry, serve, slow, monkeypatch):
    monkeypatch.setattr(served, "PATIENCE", 0.2)
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    let_go = threading.Event()
    with proxy(registry.server.uri) as between:
        mlflow.set_tracking_uri(between.uri)
        model = serve(registry.uri)
        registry.point(second)
        slow.begun.acquire(timeout=20)  # all files are fetched
        try:
            between.rule = lambda request: let_go.wait(20) and "forward"
            slow.go_on.set()
            serves(model, second)
            assert ask(model)[0] == second
        finally:
            let_go.set()


def test_the_newest_version_wins(registry, serve, slow, log):
    registry.point(registry.add(1.0))
    second, third = registry.add(2.0), registry.add(3.0)
    model = serve(registry.uri)
    registry.point(second)
    slow.begun.acquire(timeout=20)
    registry.point(third)
    eventually(lambda: events(log).count("alias_moved") == 2, "that is noticed")
    slow.go_on.set()
    serves(model, "3")

    def served():
        return [r.version for r in log.records if getattr(r, "event", "") == "serving"]

    eventually(lambda: served()[-1] == "3", "the log tells it, a moment after the first answer")
    assert served() == ["1", "3"]


# --- Swapping.


def test_requests_of_the_old_version_are_answered_by_it(registry, serve, engines):
    """With an engine that is held up on purpose while its queue is full."""
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri, LoadOptions(backend="reference", max_contexts=1, max_queue=100))
    old = model.loaded
    go_on = threading.Event()
    predict = old.engines[0].predict
    old.engines[0].predict = lambda inputs: go_on.wait(20) and predict(inputs)
    waiting = [model.submit(rows(1, n)) for n in range(50)]
    registry.point(second)
    serves(model, "2")
    assert ask(model)[0] == "2"  # at once, not after those that wait
    assert len(engines.open) == 2
    assert model.status()["unloading"] == "1"
    assert not any(future.done() for future in waiting)
    go_on.set()
    for n, future in enumerate(waiting):
        assert future.result(20).version is old.info
        assert np.array_equal(future.result(20).outputs["scores"], answer(rows(1, n)["x"], 1.0))
    eventually(lambda: len(engines.open) == 1, "then it is unloaded")
    eventually(lambda: model.status()["unloading"] is None, "and that is told")


def test_a_request_that_meets_the_swap_goes_to_the_next_version(registry, serve):
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    old, submit = model.loaded, model.loaded.batcher.submit
    met = []

    def late(inputs, deadline=None, **arguments):
        registry.point(second)
        serves(model, "2")
        old.close()
        met.append(inputs)
        return submit(inputs, deadline, **arguments)

    old.batcher.submit = late
    assert ask(model)[0] == "2"
    assert met


def test_a_full_queue_is_no_swap(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri, LoadOptions(backend="reference", max_contexts=1, max_queue=1))
    go_on = threading.Event()
    engine = model.loaded.engines[0]
    predict = engine.predict
    engine.predict = lambda inputs: go_on.wait(20) and predict(inputs)
    first = model.submit(rows(1))
    eventually(lambda: model.status()["waiting"] == 0, "the worker has it")
    second = model.submit(rows(1))
    with pytest.raises(BusyError, match="waiting already"):
        model.submit(rows(1))
    assert model.status()["waiting"] == 1
    go_on.set()
    assert first.result(20).rows == second.result(20).rows == 1


def test_what_does_not_fit_is_refused_at_once(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    with pytest.raises(InputError):
        model.submit({"y": np.zeros((1, 4), np.float32)})


@pytest.mark.slow
def test_fifty_moves_under_load(registry, serve, engines):
    """No request fails, no answer is of another version than it says, and what was replaced is unloaded."""
    shifts = {"1": 1000.0, "2": 2000.0}
    for shift in shifts.values():
        registry.add(shift)
    registry.point("1")
    model = serve(registry.uri, LoadOptions(backend="reference", max_queue=10_000))
    end = threading.Event()
    answered: list[str] = []

    def hammer(seed):
        count = 0
        while not end.is_set():
            x = rows(1 + (seed + count) % 3, seed * 10_000 + count)
            found = model.submit(x, inline=seed % 2 == 1).result(30)
            assert np.array_equal(found.outputs["scores"], answer(x["x"], shifts[found.version.version]))
            answered.append(found.version.version)
            count += 1

    pause = random.Random(0)
    with ThreadPoolExecutor(8) as threads:
        callers = [threads.submit(hammer, seed) for seed in range(8)]
        try:
            for move in range(50):
                version = "21"[move % 2]
                registry.point(version)
                if move % 3:
                    serves(model, version)
                else:
                    time.sleep(pause.random() / 5)  # the next move comes in the middle of the preparation, maybe
            serves(model, "1")
        finally:
            end.set()
        for caller in callers:
            caller.result(60)
    assert model.status()["swaps"] >= 15
    assert model.status()["failures"] == 0
    assert min(answered.count("1"), answered.count("2")) > 100
    eventually(lambda: len(engines.open) == 1, "all but the last are unloaded")
    assert engines.most == 2
