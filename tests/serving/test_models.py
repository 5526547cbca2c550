"""What is served, and how a promotion reaches it: with MLflow's own server, and PyTorch for a GPU."""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pytest
import servers

pytest.importorskip("torch", reason="the reference backend runs with it")

import mlflow_trt
from mlflow_trt import InputError, ParityError, PlanError
from mlflow_trt.errors import BusyError, DeviceError, StoreError
from mlflow_trt.registry import gates
from mlflow_trt.serving import models
from mlflow_trt.serving.models import Model
from mlflow_trt.serving.preparing import Options

from .registered import (
    REFERENCE,
    answer,
    engines,
    events,
    eventually,
    forged,
    make_registry,
    no_threads_left,
    plan,
    registry,
    rows,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))

from proxy import proxy

__all__ = ["engines", "no_threads_left", "registry"]

SOON = 0.05
NEVER = 1e6


@pytest.fixture
def serve(no_threads_left, engines):
    """Starts a model that ends with the test, and with it every engine."""
    started = []

    def start(uri, options=REFERENCE, interval=SOON, ready=True, **arguments):
        model = Model("m", str(uri), options, interval=interval, **arguments)
        started.append(model)
        model.start()
        if ready:
            model.wait(60)
        return model

    yield start
    for model in started:
        model.close()
    assert not engines.open


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "mlflow_trt.serving")
    return caplog


def ask(model, x=None):
    """The version that answered, and its answer."""
    version, future = model.submit(x or rows(2))
    return version.version, future.result(20).outputs["scores"]


def serves(model, version, seconds=30.0):
    eventually(lambda: model.current.version == version, f"version {version} is served", seconds)


def settled(model, what=lambda status: status["last_failure"] is not None):
    eventually(lambda: what(model.status()) and model.status()["preparing"] is None, "the model settles", 30)
    return model.status()


# --- Promotion.


def test_a_promotion_reaches_the_server(registry, serve, engines, log):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    x = rows(2)
    assert model.registered_model == registry.name
    assert model.current.uri == f"models:/{registry.name}/1"
    version, found = ask(model, x)
    assert version == "1"
    assert np.array_equal(found, answer(x["x"], 1.0))

    second = registry.add(2.0)
    report = mlflow_trt.promote(registry.name, second, gates=(gates.Integrity(), gates.Contract()))
    assert report.promoted

    serves(model, "2")
    version, found = ask(model, x)
    assert version == "2"
    assert np.array_equal(found, answer(x["x"], 2.0))
    eventually(lambda: len(engines.open) == 1, "the old version is unloaded")
    assert engines.most == 2
    eventually(lambda: events(log)[-1] == "unloaded", "the log says so")
    assert events(log) == ["loading", "serving", "alias_moved", "loading", "serving", "unloaded"]
    fields = [(r.event, r.version) for r in log.records if r.name == "mlflow_trt.serving" and r.event != "alias_moved"]
    assert fields == [("loading", "1"), ("serving", "1"), ("loading", "2"), ("serving", "2"), ("unloaded", "1")]


def test_the_status_tells_what_is_served(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    registry.point(registry.add(2.0))
    serves(model, "2")
    status = settled(model, lambda status: status["swaps"] == 1 and status["unloading"] is None)
    assert time.time() - status.pop("since") < 60
    assert time.time() - status.pop("checked_at") < 60
    assert json.loads(json.dumps(status)) == {
        "name": "m",
        "uri": registry.uri,
        "state": "ready",
        "version": "2",
        "platform": "reference",
        "preparing": None,
        "unloading": None,
        "last_failure": None,
        "registry_failure": None,
        "swaps": 1,
        "failures": 0,
        "waiting": 0,
    }


def test_a_converted_model_is_promoted(registry, classifier_plan, serve):
    registry.point(registry.log(classifier_plan))
    model = serve(registry.uri)
    _, future = model.submit({"x": np.ones((3, 4), np.float32)})
    assert future.result(20).outputs["mean"].tolist() == [1.0, 1.0, 1.0]
    registry.point(registry.add(2.0))
    serves(model, "2")
    assert ask(model)[0] == "2"


def test_the_newest_version_is_followed(registry, serve):
    registry.add(1.0)
    model = serve(f"models:/{registry.name}/latest")
    assert ask(model)[0] == "1"
    registry.add(2.0)
    serves(model, "2")


def test_the_registry_is_looked_at_when_asked(registry, serve):
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri, interval=NEVER)
    registry.point(second)
    time.sleep(0.2)
    assert ask(model)[0] == "1"
    model.refresh()
    serves(model, "2")


@pytest.mark.parametrize("kind", ["version", "run", "folder"])
def test_what_always_means_the_same_is_not_followed(registry, serve, kind, classifier_folder):
    made = plan(1.0)
    registry.point(registry.log(made))
    uri = {"version": f"models:/{registry.name}/1", "folder": classifier_folder}.get(kind)
    if kind == "run":
        found = registry.client.get_model_version(registry.name, "1")
        uri = found.source
    with proxy(registry.server.uri) as between:
        mlflow.set_tracking_uri(between.uri)
        seen = []
        model = serve(uri)
        assert model.registered_model is None
        assert model.current.version == "1" if kind == "version" else len(model.current.version) == 12
        between.after = seen.append
        registry.add(2.0)
        mine = len(seen)
        model.refresh()
        time.sleep(5 * SOON)
        assert len(seen) == mine
        assert model.status()["checked_at"] is None


def test_rows_of_many_callers_are_joined(registry, serve):
    registry.point(registry.add(1.0))
    seen = []
    model = serve(registry.uri, Options(backend="reference", delay=0.2), on_batch=seen.append)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: ask(model, rows(1, n))[1], range(8)))
    assert all(np.array_equal(f, answer(rows(1, n)["x"], 1.0)) for n, f in enumerate(found))
    assert sum(batch.rows for batch in seen) == 8
    assert max(batch.rows for batch in seen) > 1


# --- A version that can't be served.


def damage_the_program(registry):
    version = registry.log(plan(2.0))
    forged.flip_one_byte(registry.stored(version) / "program/model.pt2")
    return version


FAULTS = {
    "PlanError": damage_the_program,
    "ParityError": lambda registry: registry.add(2.0, "wrong"),
    "SettingError": lambda registry: registry.add(2.0, program="omit"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_version_that_fails_changes_nothing(registry, serve, engines, log, kind):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    registry.point(FAULTS[kind](registry))

    status = settled(model)

    failure = status["last_failure"]
    assert (failure["version"], failure["type"], status["failures"]) == ("2", kind, 1)
    assert "\n" not in failure["error"] or kind == "ParityError"
    assert (status["state"], status["version"], status["swaps"]) == ("ready", "1", 0)
    assert type(model.failure).__name__ == kind
    assert ask(model)[0] == "1"
    assert len(engines.open) == 1
    made = engines.made
    time.sleep(10 * SOON)
    assert engines.made == made  # it does not try for ever
    assert model.status()["failures"] == 1
    [record] = [r for r in log.records if getattr(r, "event", "") == "failed"]
    assert record.levelno == logging.ERROR
    assert (record.model, record.version, record.error_type) == ("m", "2", kind)
    assert "Version 1 keeps serving" in record.getMessage()

    registry.point(registry.add(3.0))
    serves(model, "3")
    assert settled(model, lambda status: status["last_failure"] is None)["failures"] == 1
    assert model.failure is None


def test_a_version_that_failed_is_tried_again_when_the_alias_comes_back(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    bad = damage_the_program(registry)
    registry.point(bad)
    settled(model)
    registry.point("1")
    settled(model, lambda status: status["last_failure"] is None)
    forged.flip_one_byte(registry.stored(bad) / "program/model.pt2")  # as it was
    registry.point(bad)
    serves(model, bad)


def test_a_version_that_failed_is_tried_again_when_asked(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    bad = damage_the_program(registry)
    registry.point(bad)
    settled(model)
    model.refresh()
    eventually(lambda: model.status()["failures"] == 2, "it is tried again")
    forged.flip_one_byte(registry.stored(bad) / "program/model.pt2")
    model.refresh()
    serves(model, bad)
    assert model.status()["last_failure"] is None


def test_a_gpu_whose_memory_is_full_is_tried_again_ever_more_seldom(registry, serve, engines, log):
    """A stand-in for the GPU: the loads of the second version are refused four times."""
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    refused = []

    def full(folder):
        if len(refused) < 4:
            refused.append(time.monotonic())
            raise DeviceError("The GPU's memory does not suffice.", "room", "free memory")

    engines.before = full
    registry.point(registry.add(2.0))

    serves(model, "2")

    pauses = np.diff(refused)
    assert all(pause >= SOON * 2**n for n, pause in enumerate(pauses))
    assert model.status()["failures"] == 4
    assert model.status()["last_failure"] is None
    errors = [r for r in log.records if getattr(r, "event", "") == "failed"]
    assert [r.attempts for r in errors] == [1, 2, 3, 4]
    assert all("memory does not suffice" in r.error and "tried again in" in r.getMessage() for r in errors)


def test_a_version_that_failed_keeps_no_memory(registry, serve, engines):
    """What a load had made when it failed goes, though the failure itself is remembered."""

    class HalfAnEngine:
        pass

    made = []

    def fail(folder):
        engine = HalfAnEngine()
        made.append(weakref.ref(engine))
        try:
            raise MemoryError("inner")
        except MemoryError as error:
            raise DeviceError("outer") from error

    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    engines.before = fail
    registry.point(registry.add(2.0))
    settled(model)
    eventually(lambda: [ref() for ref in made] == [None] * len(made), "nothing refers to it")
    assert model.failure.found == "outer"


# --- The registry is away.


@pytest.mark.parametrize("action", ["refuse", "drop"])
def test_a_registry_that_is_away_changes_nothing(registry, serve, log, action):
    with proxy(registry.server.uri) as between:
        mlflow.set_tracking_uri(between.uri)
        registry.point(registry.add(1.0))
        second = registry.add(2.0)
        model = serve(registry.uri)
        refused = []
        between.rule = lambda request: refused.append(request) or action
        eventually(lambda: len(refused) >= 5, "it is looked at again and again")

        status = model.status()
        assert f"{registry.name}@champion can't be read" in status["registry_failure"]
        assert status["state"] == "ready"
        assert isinstance(model.failure, StoreError)
        assert ask(model)[0] == "1"
        assert events(log).count("registry_away") == 1  # not once per look

        between.reset()
        registry.point(second)
        serves(model, "2")
        assert model.status()["registry_failure"] is None
        assert events(log).count("registry_away") == events(log).count("registry_back") == 1


def test_a_registry_that_hangs_keeps_nobody_waiting(registry, serve, monkeypatch):
    """Not even who closes the server."""
    monkeypatch.setattr(models, "PATIENCE", 0.2)
    go_on = threading.Event()
    with proxy(registry.server.uri) as between:
        mlflow.set_tracking_uri(between.uri)
        registry.point(registry.add(1.0))
        model = serve(registry.uri)
        hanging = threading.Event()
        try:
            between.rule = lambda request: "forward" if hanging.set() else go_on.wait(20) and "forward"
            eventually(hanging.is_set, "a look hangs")
            eventually(lambda: model.status()["registry_failure"], "that is told")
            assert "not answered" in model.status()["registry_failure"]
            assert ask(model)[0] == "1"
            begin = time.monotonic()
            model.close()
            assert time.monotonic() - begin < 5
        finally:
            go_on.set()


def test_a_registry_that_is_killed_changes_nothing(serve, engines, monkeypatch, tmp_path):
    with servers.tracking_server(tmp_path / "server") as server:
        registry = make_registry(server, monkeypatch, tmp_path)
        registry.point(registry.add(1.0))
        model = serve(registry.uri)
    eventually(lambda: model.status()["registry_failure"], "that is noticed")
    for _ in range(20):
        assert ask(model)[0] == "1"
    model.close()


def test_a_deleted_alias_changes_nothing(registry, serve):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    registry.client.delete_registered_model_alias(registry.name, "champion")
    eventually(lambda: model.status()["registry_failure"], "that is noticed")
    assert "champion" in model.status()["registry_failure"]
    assert ask(model)[0] == "1"


# --- The first version.


def test_a_model_that_is_not_loaded_takes_no_requests(registry, serve, engines):
    registry.point(registry.add(1.0))
    go_on = threading.Event()
    engines.before = lambda folder: go_on.wait(20)
    model = serve(registry.uri, ready=False)
    with pytest.raises(BusyError, match="m is being loaded") as raised:
        model.submit(rows(1))
    assert raised.value.get_http_status_code() == 503
    assert model.status()["state"] == "loading"
    with pytest.raises(BusyError):
        model.wait(0.01)
    go_on.set()
    assert model.wait(20).version == "1"
    assert model.status()["state"] == "ready"


def test_an_alias_that_is_set_later(registry, serve):
    registry.add(1.0)
    model = serve(registry.uri, ready=False)
    with pytest.raises(StoreError, match="champion"):
        model.wait(20)
    assert model.status()["state"] == "failed"
    with pytest.raises(BusyError, match="could not be loaded yet"):
        model.submit(rows(1))
    registry.point("1")
    eventually(lambda: model.status()["state"] == "ready", "it is served")


def test_a_first_version_that_fails_and_is_replaced(registry, serve):
    registry.point(registry.add(1.0, "wrong"))
    model = serve(registry.uri, ready=False)
    with pytest.raises(ParityError):
        model.wait(20)
    status = settled(model)
    assert (status["state"], status["version"], status["swaps"]) == ("failed", None, 0)
    registry.point(registry.add(2.0))
    eventually(lambda: model.status()["state"] == "ready", "the next one is served")
    assert model.wait(1).version == "2"


def test_a_folder_that_fails_and_is_put_right(classifier_folder, serve):
    program = classifier_folder / "program/model.pt2"
    forged.flip_one_byte(program)
    model = serve(classifier_folder, ready=False)
    with pytest.raises(PlanError, match="SHA-256"):
        model.wait(20)
    forged.flip_one_byte(program)
    time.sleep(3 * SOON)
    assert model.status()["failures"] == 1
    model.refresh()
    eventually(lambda: model.status()["state"] == "ready", "it is served")


# --- The alias moves while a version is made ready.


@pytest.fixture
def slow(engines):
    """Holds back the load of every version but the first, until it is let go."""

    class Slow:
        begun = threading.Semaphore(0)
        go_on = threading.Event()

        def hold(self, folder):
            if engines.made:
                self.begun.release()
                assert self.go_on.wait(20)

    made = Slow()
    engines.before = made.hold
    yield made
    made.go_on.set()


def test_a_version_from_which_the_alias_was_taken_away_answers_not_once(registry, serve, slow, engines, log):
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    registry.point(second)
    slow.begun.acquire(timeout=20)
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
    prepare = models.prepare

    def and_then_back(*args, **kwargs):
        version = prepare(*args, **kwargs)
        registry.point("1")
        return version

    monkeypatch.setattr(models, "prepare", and_then_back)
    registry.point(second)
    model.refresh()
    eventually(lambda: "dropped" in events(log), "it is dropped")
    assert "serving" not in events(log)[2:]
    assert ask(model)[0] == "1"
    eventually(lambda: len(engines.open) == 1, "it is unloaded")


def test_a_registry_that_hangs_at_the_last_moment_does_not_keep_a_version_back(registry, serve, slow, monkeypatch):
    monkeypatch.setattr(models, "PATIENCE", 0.2)
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
    served = [r.version for r in log.records if getattr(r, "event", "") == "serving"]
    assert served == ["1", "3"]


# --- Swapping.


def test_requests_of_the_old_version_are_answered_by_it(registry, serve, engines):
    """With an engine that is held up on purpose while its queue is full."""
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri, Options(backend="reference", max_contexts=1, max_queue=100))
    old = model.current
    go_on = threading.Event()
    predict = old.engines[0].predict
    old.engines[0].predict = lambda inputs: go_on.wait(20) and predict(inputs)
    waiting = [model.submit(rows(1, n)) for n in range(50)]
    registry.point(second)
    serves(model, "2")
    assert ask(model)[0] == "2"  # at once, not after those that wait
    assert len(engines.open) == 2
    assert model.status()["unloading"] == "1"
    assert not any(future.done() for _, future in waiting)
    go_on.set()
    for n, (version, future) in enumerate(waiting):
        assert version is old
        assert np.array_equal(future.result(20).outputs["scores"], answer(rows(1, n)["x"], 1.0))
    eventually(lambda: len(engines.open) == 1, "then it is unloaded")
    eventually(lambda: model.status()["unloading"] is None, "and that is told")


def test_a_request_that_meets_the_swap_goes_to_the_next_version(registry, serve):
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    old, submit = model.current, model.current.batcher.submit
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
    model = serve(registry.uri, Options(backend="reference", max_contexts=1, max_queue=1))
    go_on = threading.Event()
    engine = model.current.engines[0]
    predict = engine.predict
    engine.predict = lambda inputs: go_on.wait(20) and predict(inputs)
    first = model.submit(rows(1))
    eventually(lambda: model.status()["waiting"] == 0, "the worker has it")
    second = model.submit(rows(1))
    with pytest.raises(BusyError, match="waiting already"):
        model.submit(rows(1))
    assert model.status()["waiting"] == 1
    go_on.set()
    assert first[1].result(20).rows == second[1].result(20).rows == 1


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
    model = serve(registry.uri, Options(backend="reference", max_queue=10_000))
    end = threading.Event()
    answered: list[str] = []

    def hammer(seed):
        count = 0
        while not end.is_set():
            x = rows(1 + (seed + count) % 3, seed * 10_000 + count)
            version, future = model.submit(x, here=seed % 2 == 1)
            found = future.result(30).outputs["scores"]
            assert np.array_equal(found, answer(x["x"], shifts[version.version]))
            answered.append(version.version)
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


# --- The end.


def test_closing_answers_what_waits(registry, serve, engines):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    waiting = [model.submit(rows(1, n))[1] for n in range(50)]
    model.close()
    assert all(future.done() and future.exception() is None for future in waiting)
    assert not engines.open
    with pytest.raises(BusyError, match="closed"):
        model.submit(rows(1))
    with pytest.raises(BusyError, match="closed"):
        model.wait(1)
    assert model.status()["state"] == "closed"
    model.close()
    model.refresh()


def test_closing_while_the_first_version_is_loaded(registry, serve, engines):
    registry.point(registry.add(1.0))
    begun, go_on = threading.Event(), threading.Event()
    engines.before = lambda folder: begun.set() or go_on.wait(20)
    model = serve(registry.uri, ready=False)
    assert begun.wait(20)
    closing = threading.Thread(target=model.close)
    closing.start()
    with pytest.raises(BusyError):
        model.wait(20)
    go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert not engines.open
    assert model.status()["version"] is None


def test_closing_while_the_next_version_is_loaded(registry, serve, slow, engines):
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    registry.point(second)
    slow.begun.acquire(timeout=20)
    closing = threading.Thread(target=model.close)
    closing.start()
    eventually(lambda: model.status()["state"] == "closed", "it closes")
    slow.go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert not engines.open


def test_a_load_that_hangs_does_not_keep_close_waiting(registry, serve, slow, monkeypatch, log):
    monkeypatch.setattr(models, "_ENDING", 0.2)
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    registry.point(second)
    slow.begun.acquire(timeout=20)
    begin = time.monotonic()
    model.close()
    assert time.monotonic() - begin < 10
    assert "close_waits" in events(log)
    slow.go_on.set()


def test_a_model_that_never_began_can_be_closed():
    model = Model("m", "models:/m@champion", REFERENCE)
    model.close()
    assert model.status()["state"] == "closed"
