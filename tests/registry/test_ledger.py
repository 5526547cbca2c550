"""Two movers at once, processes that die, and registries that are away, slow or read-only: on real servers."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import mlflow
import movers
import pytest
from mlflow.tracking._tracking_service import utils
from proxy import proxy
from registries import on_both

import mlflow_trt
from mlflow_trt import StoreError
from mlflow_trt.registry import ledger

WRITES = ["report.html or .json", "report.html or .json", "claim", "alias", "version tag", "model tag", "claim deleted"]
"""What a promotion writes, in this order; a death between two of them leaves what the first of them left."""
CLAIMED = 3
"""From this write on, the move is decided."""


def promote(registry, version, alias="champion"):
    return mlflow_trt.promote(registry.name, version, alias, gates=[])


@pytest.fixture
def between(registry):
    """A proxy before the registry's server; the test itself speaks to the server."""
    with proxy(registry.server.uri) as made:
        yield made


@pytest.fixture
def through(between, monkeypatch):
    """The same with the test's own client behind it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(between.uri)
    # MLflow keeps for each logged model how its artifacts were first reached.
    utils._artifact_repos_cache.clear()
    yield between
    utils._artifact_repos_cache.clear()


@on_both
def test_a_promotion_killed_at_any_step_leaves_what_the_evidence_says_and_can_be_repeated(registry, versions, between):
    """SIGKILL by the proxy, when the server has done the n-th write and before the process hears of it."""
    for step in range(len(WRITES) + 1):
        alias = f"step-{step}"
        registry.client.set_registered_model_alias(registry.name, alias, versions[0])
        between.reset()
        child = []

        def kill(request, step=step, child=child):
            if request.is_write and request.writes == max(step, 1):
                os.kill(child[0].pid, signal.SIGKILL)

        # Step 0: killed before the server sees the first write.
        if step == 0:
            between.rule = lambda request, kill=kill: kill(request) or ("drop" if request.is_write else "forward")
        else:
            between.after = kill
        ready = threading.Event()
        forward = between.rule
        between.rule = lambda request, ready=ready, forward=forward: ready.wait(60) and forward(request)
        child.append(movers.start(movers.promote, between.uri, registry.name, versions[1], alias))
        ready.set()
        child[0].join(60)
        assert child[0].exitcode == -signal.SIGKILL, (step, between.writes)

        left = registry.holder(alias)
        there = ledger.Ledger(registry.name, alias)
        pending = there.pending(there.read())
        if step < CLAIMED:
            assert (left, pending) == (versions[0], None), step
        elif pending is not None:
            assert pending.to_version == versions[1], step
            assert left in (versions[0], versions[1]), step
        else:
            assert left == versions[1], step

        report = promote(registry, versions[1], alias)

        assert report.ok, step
        assert report.outcome == ("promoted" if step < CLAIMED else "unchanged"), step
        assert registry.holder(alias) == versions[1], step
        [move] = registry.state(alias).history
        assert (move.from_version, move.to_version) == (versions[0], versions[1]), step
        tags = registry.client.get_model_version(registry.name, versions[1]).tags
        assert f"mlflow_trt.move.{move.id}" in tags, step
        assert '"outcome": "accepted"' in mlflow.artifacts.load_text(f"{move.report}/report.json"), step
    assert [len(between.writes), registry.claims()] == [len(WRITES), []]


def test_a_killed_promotion_is_finished_by_whoever_comes_next(registry, versions, between):
    for step, finish in enumerate([lambda a: promote(registry, versions[2], a), lambda a: roll(registry, a)], 3):
        alias = f"next-{step}"
        promote(registry, versions[0], alias)
        killed(registry, between, versions[1], alias, at=step)

        finish(alias)

        moves = registry.state(alias).history
        assert [m.to_version for m in moves[:2]] == [versions[0], versions[1]], "the killed one is in the history"
        assert moves[2].from_version == versions[1]
        assert registry.holder(alias) == moves[2].to_version


def roll(registry, alias):
    return mlflow_trt.rollback(registry.name, alias)


def killed(registry, between, version, alias, at):
    between.reset()
    child = []
    started = threading.Event()
    between.rule = lambda request: "forward" if started.wait(60) else "drop"
    between.after = lambda request: (
        os.kill(child[0].pid, signal.SIGKILL) if request.is_write and request.writes == at else None
    )
    child.append(movers.start(movers.promote, between.uri, registry.name, version, alias))
    started.set()
    child[0].join(60)
    assert child[0].exitcode == -signal.SIGKILL
    between.reset()


def test_a_dry_run_leaves_a_killed_promotion_as_it_is(registry, versions, between):
    killed(registry, between, versions[1], "champion", at=CLAIMED)

    mlflow_trt.promote(registry.name, versions[2], gates=[], dry_run=True)

    assert registry.holder() is None
    assert len(registry.claims()) == 1


def test_a_claim_on_a_version_that_was_deleted_is_void(registry, versions, between):
    killed(registry, between, versions[1], "champion", at=CLAIMED)
    registry.client.delete_model_version(registry.name, versions[1])

    assert promote(registry, versions[2]).promoted
    assert [m.to_version for m in registry.state().history] == [versions[2]]
    assert registry.claims() == []


@on_both
@pytest.mark.parametrize("back", [False, True], ids=["promote", "rollback"])
def test_of_several_at_once_exactly_one_wins_and_the_others_say_why(registry, versions, back):
    rounds = 4
    if back:
        for number in range(rounds):
            for version in versions:
                promote(registry, version, f"race-{number}")
    barrier, queue = movers.CONTEXT.Barrier(len(versions)), movers.CONTEXT.Queue()
    racers = [
        movers.start(movers.race, registry.server.uri, registry.name, v, rounds, barrier, queue, back) for v in versions
    ]
    results = [queue.get(timeout=120) for _ in range(rounds * len(racers))]
    for racer in racers:
        racer.join(60)

    for number in range(rounds):
        alias = f"race-{number}"
        of_round = [r for r in results if r[0] == alias]
        outcomes = sorted(r[2] for r in of_round)
        moves = registry.state(alias).history
        if back:
            # A process that looked later may have gone one further back, by a move of its own: never twice by one.
            assert set(outcomes) <= {"lost", "rolled back"}, of_round
            made = moves[len(versions) :]
            assert len(made) == outcomes.count("rolled back") >= 1, of_round
            assert [m.to_version for m in made] == versions[-2::-1][: len(made)]
            assert registry.holder(alias) == made[-1].to_version
            continue
        assert outcomes == ["lost", "lost", "promoted"], of_round
        [winner] = [r for r in of_round if r[2] == "promoted"]
        assert registry.holder(alias) == winner[1]
        assert [m.to_version for m in moves] == [winner[1]]
        for loser in (r for r in of_round if r[2] == "lost"):
            assert f"to version {winner[1]} meanwhile" in loser[4][0]
    assert registry.claims() == []


def test_a_claim_that_comes_late_is_void(registry, versions, between):
    """It is held just before it claims the move; meanwhile another claims, makes and finishes it."""
    held, release = threading.Event(), threading.Event()

    def hold(request):
        if request.path.endswith("/registered-models/create") and not held.is_set():
            held.set()
            release.wait(60)
        return "forward"

    between.rule = hold
    late = movers.start(movers.promote, between.uri, registry.name, versions[0], "champion")
    assert held.wait(60)

    assert promote(registry, versions[1]).promoted
    release.set()
    late.join(60)

    assert late.exitcode == movers.NOT_PROMOTED
    assert registry.holder() == versions[1]
    assert [m.to_version for m in registry.state().history] == [versions[1]]
    assert registry.claims() == []


def test_a_process_that_slept_does_not_bring_back_what_was_replaced(registry, versions, between):
    """It is held just before it sets the alias; meanwhile another finishes its move and makes the next."""
    held, release = threading.Event(), threading.Event()

    def hold(request):
        if request.path.endswith("/registered-models/alias") and request.is_write and not held.is_set():
            held.set()
            release.wait(60)
        return "forward"

    between.rule = hold
    sleeper = movers.start(movers.promote, between.uri, registry.name, versions[0], "champion")
    assert held.wait(60)

    assert promote(registry, versions[1]).promoted
    release.set()
    sleeper.join(60)

    assert sleeper.exitcode == 0
    assert registry.holder() == versions[1]
    assert [m.to_version for m in registry.state().history] == [versions[0], versions[1]]
    assert registry.claims() == []


def test_a_registry_that_goes_away_at_any_step_is_a_clear_error(registry, versions, through):
    for step in range(1, len(WRITES)):
        alias = f"away-{step}"
        through.reset()
        through.rule = lambda request, step=step: "drop" if len(through.writes) >= step else "forward"

        with pytest.raises(StoreError) as caught:
            promote(registry, versions[0], alias)

        through.reset()
        expected = "accepted but not finished" if step > CLAIMED else "no alias was moved|the alias is unchanged"
        assert re.search(expected, caught.value.message), (step, caught.value.message)
        assert registry.holder(alias) in ([None] if step <= CLAIMED + 1 else [versions[0]]), step
        assert promote(registry, versions[0], alias).ok
        assert registry.holder(alias) == versions[0]


def test_a_registry_that_goes_away_when_all_is_on_record_is_only_a_warning(registry, versions, through, caplog):
    through.rule = lambda request: "drop" if len(through.writes) >= len(WRITES) else "forward"

    report = promote(registry, versions[0])

    through.reset()
    assert report.promoted
    assert "made and on record" in caplog.text
    assert (registry.holder(), len(registry.claims())) == (versions[0], 1)
    assert promote(registry, versions[0]).outcome == "unchanged"
    assert registry.claims() == []


def test_an_answer_that_is_lost_once_is_no_failure(registry, versions, through, monkeypatch):
    """MLflow's client repeats the request: the claim is then taken, by the very process that asks."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    through.rule = once(through, "/registered-models/create")

    report = promote(registry, versions[0])

    assert report.promoted
    assert through.writes.count("POST /api/2.0/mlflow/registered-models/create") == 2


def once(through, path):
    done = []

    def rule(request):
        if request.is_write and request.path.endswith(path) and not done:
            done.append(request)
            return "drop answer"
        return "forward"

    return rule


def test_a_slow_registry_is_an_error_in_time(registry, versions, through, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    create = "/registered-models/create"
    through.rule = lambda request: time.sleep(2) or "forward" if request.path.endswith(create) else "forward"

    begin = time.monotonic()
    with pytest.raises(StoreError, match="the alias is unchanged"):
        promote(registry, versions[0])

    assert time.monotonic() - begin < 30
    assert registry.holder() is None
    time.sleep(2)
    assert len(registry.claims()) == 1, "the claim was made all the same, after nobody waited for it any more"
    assert promote(registry, versions[0]).outcome == "unchanged", "which the next call finishes"
    assert registry.holder() == versions[0]


def test_a_user_who_may_only_read_is_told_so(registry, versions, through):
    through.rule = lambda request: "refuse" if request.is_write else "forward"

    with pytest.raises(StoreError, match=r"(?s)Permission denied|403"):
        promote(registry, versions[0])
    with pytest.raises(StoreError, match=r"(?s)can't be claimed; the alias is unchanged.*Permission denied"):
        ledger.Ledger(registry.name, "champion").move("promote", registry.state(), versions[0], **facts())

    assert registry.holder() is None


def facts():
    return {"id": "0", "who": "me", "when": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize("registry", ["postgres"], indirect=True)
def test_a_read_only_database_is_told_so(registry, versions, postgres):
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlflow'"
    postgres.run("ALTER DATABASE mlflow SET default_transaction_read_only = on")
    postgres.run(others)
    try:
        with pytest.raises(StoreError, match=r"can't be claimed; the alias is unchanged"):
            ledger.Ledger(registry.name, "champion").move("promote", registry.state(), versions[0], **facts())
        assert registry.holder() is None
    finally:
        postgres.run("ALTER DATABASE mlflow SET default_transaction_read_only = off")
        postgres.run(others)

    assert promote(registry, versions[0]).promoted


def test_an_unreachable_server_is_a_store_error(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")

    with pytest.raises(StoreError, match="can't be read from the registry"):
        mlflow_trt.promote("classifier", 1)
    with pytest.raises(StoreError, match="can't be read from the registry"):
        mlflow_trt.rollback("classifier")


def test_a_report_that_cannot_be_stored_stops_the_promotion(registry, versions, through):
    through.rule = lambda request: "refuse" if "artifacts" in request.path and request.is_write else "forward"

    with pytest.raises(StoreError, match="report can't be written"):
        promote(registry, versions[0])

    assert registry.holder() is None
    assert registry.claims() == []
