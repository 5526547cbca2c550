"""The benchmarks that load a server, in a short form: good and bad clients for some seconds, and ends under load."""

from __future__ import annotations

import json

import migrated
import pytest

pytest.importorskip("torch", reason="the reference backend runs with it")
pytest.importorskip("flask", reason="needs the server, which mlflow brings and mlflow-skinny does not")
pytest.importorskip("grpc", reason="one of the clients speaks gRPC")

from benchmarks import ending, soak
from benchmarks.askers import KINDS, Asked

pytestmark = [pytest.mark.xdist_group("ending"), pytest.mark.timeout(600)]

LATER = {"probes, 99th percentile", "memory, last quarter ÷ second"}
"""What seconds on a machine that does other things too say nothing of."""


def test_a_soak_of_some_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "registry").mkdir()
    migrated.copy(tmp_path / "registry/mlflow.db")
    found = soak.soak(10, tmp_path)
    wrong = {what: value for what, (value, right) in found.verdicts().items() if not right and what not in LATER}
    assert not wrong, (wrong, found.lost()[:5], found.probes_failed[:5])
    assert set(found.bad) == set(soak.BAD)
    assert (found.moves, found.restarts) == (6, 1)
    assert found.at_sigterm > 10 * len(KINDS)


def test_an_end_under_load(tmp_path):
    row = ending.run(ending.save_model(tmp_path / "model"), tmp_path, {**ending.HTTP, **ending.GRPC}, ())
    assert (row.lost, row.bad_status) == ([], 0)
    assert row.after > 0


def test_a_request_that_the_server_answered_and_nobody_got_is_lost():
    asked = Asked(failures=["a: reset"], unanswered={"b": "UNAVAILABLE", "c": "UNAVAILABLE"})
    lines = [
        json.dumps({"request_id": name, "status": status, "path": "/"})
        for name, status in (("b", "OK"), ("c", "UNAVAILABLE"))
    ]
    assert asked.lost([*lines, "no JSON", "[]"]) == ["a: reset", "b: UNAVAILABLE, and the server answered"]


def test_growth():
    assert soak.growth([9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 4.0, 4.0]) == 4 / 2.5
    assert soak.growth([1.0]) == 1.0
