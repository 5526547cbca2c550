"""What is served from the first version to the end: with MLflow's own server, and PyTorch for a GPU."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend runs with it")

import mlflow_trt
from mlflow_trt import ParityError, PlanError
from mlflow_trt.errors import BusyError, StoreError
from mlflow_trt.registry import gates
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.versions import served
from mlflow_trt.serving.versions.served import Model

from ..registered import (
    NEVER,
    REFERENCE,
    SOON,
    answer,
    ask,
    engines,
    events,
    eventually,
    forged,
    loading_the_second,
    log,
    no_threads_left,
    plan,
    proxy,
    registry,
    rows,
    serve,
    serves,
    settled,
    slow,
)

__all__ = ["engines", "log", "no_threads_left", "registry", "serve", "slow"]


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
        "attempted": True,
        "cached": False,
    }


def test_a_converted_model_is_promoted(registry, classifier_plan, serve):
    registry.point(registry.log(classifier_plan))
    model = serve(registry.uri)
    future = model.submit({"x": np.ones((3, 4), np.float32)})
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
    model = serve(registry.uri, LoadOptions(backend="reference", delay=0.2), on_batch=seen.append)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: ask(model, rows(1, n))[1], range(8)))
    assert all(np.array_equal(f, answer(rows(1, n)["x"], 1.0)) for n, f in enumerate(found))
    assert sum(batch.rows for batch in seen) == 8
    assert max(batch.rows for batch in seen) > 1


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


# --- The end.


def test_closing_answers_what_waits(registry, serve, engines):
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    waiting = [model.submit(rows(1, n)) for n in range(50)]
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
    model = loading_the_second(registry, serve, slow)
    closing = threading.Thread(target=model.close)
    closing.start()
    eventually(lambda: model.status()["state"] == "closed", "it closes")
    slow.go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert not engines.open


def test_a_load_that_hangs_does_not_keep_close_waiting(registry, serve, slow, monkeypatch, log):
    monkeypatch.setattr(served, "_ENDING", 0.2)
    model = loading_the_second(registry, serve, slow)
    begin = time.monotonic()
    model.close()
    assert time.monotonic() - begin < 10
    assert "close_waits" in events(log)
    slow.go_on.set()


def test_a_model_that_never_began_can_be_closed():
    model = Model("m", "models:/m@champion", REFERENCE)
    model.close()
    assert model.status()["state"] == "closed"
