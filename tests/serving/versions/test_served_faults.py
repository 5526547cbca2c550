"""Versions that can't be served and a registry that is away: what answers goes on answering."""

from __future__ import annotations

import logging
import threading
import time
import weakref

import mlflow
import numpy as np
import pytest
import servers

pytest.importorskip("torch", reason="the reference backend runs with it")

from mlflow_trt.errors import DeviceError, StoreError
from mlflow_trt.serving.versions import served

from ..registered import (
    SOON,
    ask,
    engines,
    events,
    eventually,
    forged,
    log,
    make_registry,
    no_threads_left,
    plan,
    proxy,
    registry,
    serve,
    serves,
    settled,
    slow,
)

__all__ = ["engines", "log", "no_threads_left", "registry", "serve", "slow"]


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


def serve_and_fail(registry, serve):
    """A model that serves version 1, and the version that the alias names and that can't be loaded."""
    registry.point(registry.add(1.0))
    model = serve(registry.uri)
    bad = damage_the_program(registry)
    registry.point(bad)
    settled(model)
    return model, bad


def test_a_version_that_failed_is_tried_again_when_the_alias_comes_back(registry, serve):
    model, bad = serve_and_fail(registry, serve)
    registry.point("1")
    settled(model, lambda status: status["last_failure"] is None)
    forged.flip_one_byte(registry.stored(bad) / "program/model.pt2")  # as it was
    registry.point(bad)
    serves(model, bad)


def test_a_version_that_failed_is_tried_again_when_asked(registry, serve):
    model, bad = serve_and_fail(registry, serve)
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
    monkeypatch.setattr(served, "PATIENCE", 0.2)
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
