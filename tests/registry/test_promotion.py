"""Promoting and going back: who holds the alias, what is written where, and what is refused."""

from __future__ import annotations

import json
import re

import forged
import mlflow
import pytest
from registries import on_both

import mlflow_trt
from mlflow_trt import PromotionError, SettingError
from mlflow_trt.registry import evidence, gates, history
from mlflow_trt.registry.gate_context import GateContext

LIGHT = (gates.Integrity(), gates.Contract())
"""What needs no GPU and has nothing to allow."""


def promote(registry, version, alias="champion", gates=LIGHT, **arguments):
    return mlflow_trt.promote(registry.name, version, alias, gates=gates, **arguments)


@on_both
def test_a_promotion_moves_the_alias_and_leaves_its_evidence(registry):
    version = registry.log(forged.plan())

    report = promote(registry, version)

    assert report.promoted
    assert report.ok
    assert registry.holder() == version
    digest = mlflow_trt.inspect(f"models:/{registry.name}@champion").plans[0].file.sha256
    [move] = history(registry.name)
    assert (move.number, move.kind, move.from_version, move.to_version) == (1, "promote", None, version)
    assert (move.id, move.digest, move.who, move.when) == (report.id, digest, report.who, report.when)
    assert evidence(registry.name, version) == (move,)
    stored = json.loads(mlflow.artifacts.load_text(f"{move.report}/report.json"))
    assert stored["id"] == report.id
    assert [v["gate"] for v in stored["verdicts"]] == ["integrity", "contract"]
    assert all(v["status"] == "passed" for v in stored["verdicts"])
    assert registry.claims() == []


def test_the_page_is_readable_and_loads_nothing_from_elsewhere(registry):
    report = promote(registry, registry.log(forged.plan()))

    page = mlflow.artifacts.load_text(f"{report.evidence}/report.html")

    assert page.startswith("<!doctype html>")
    assert f"{registry.name} version 1 for champion" in page
    assert "integrity" in page
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"'(]?\s*(https?:)?//", page)
    assert "<script" not in page


def test_a_promoted_model_still_loads_and_keeps_its_digest(registry):
    """The report lies in the model's own folder."""
    version = registry.log(forged.plan())
    promote(registry, version)

    assert promote(registry, version).outcome == "unchanged"
    again = registry.again(version)
    assert promote(registry, again).promoted


def test_who_comes_from_the_tracking_servers_user(registry, versions, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "grace")

    promote(registry, versions[0])

    assert history(registry.name)[0].who == "grace"


def test_a_failing_gate_refuses_and_tells_why(registry, versions):
    promote(registry, versions[0])

    report = promote(registry, versions[1], gates=[*LIGHT, lambda context: "The moon is wrong."])

    assert report.outcome == "refused"
    assert not report.ok
    assert report.verdicts[-1].reasons == ("The moon is wrong.",)
    assert registry.holder() == versions[0]
    assert len(history(registry.name)) == 1
    tags = registry.client.get_model_version(registry.name, versions[1]).tags
    refusal = json.loads(tags["mlflow_trt.refused.champion"])
    assert refusal["reason"] == "The moon is wrong."
    stored = json.loads(mlflow.artifacts.load_text(f"{refusal['report']}/report.json"))
    assert stored["outcome"] == "refused"


def test_not_measured_refuses_unless_it_is_allowed(registry, versions):
    chosen = [gates.Parity()]

    refused = promote(registry, versions[0], gates=chosen)
    allowed = promote(registry, versions[0], gates=chosen, allow_not_measured=["parity"])

    assert refused.outcome == "refused"
    assert "not measured" in refused.verdicts[0].reasons[0]
    assert allowed.promoted
    assert allowed.verdicts[0].status == "not_measured", "allowed is not passed"


def test_the_default_gates_ask_for_a_gpu(registry, versions):
    first = mlflow_trt.promote(registry.name, versions[0], dry_run=True)
    promote(registry, versions[0])
    second = mlflow_trt.promote(registry.name, versions[1], dry_run=True)

    assert [v.gate for v in first.verdicts] == ["integrity", "contract", "parity", "latency"]
    assert [v.gate for v in first.verdicts if v.blocks] == ["parity"], "without a champion there is nothing to race"
    assert {v.gate for v in second.verdicts if v.blocks} <= {"parity", "latency"}


def test_a_dry_run_writes_nothing(registry, versions):
    before = registry.client.get_model_version(registry.name, versions[0])
    files = sorted(registry.stored(versions[0]).rglob("*"))

    report = promote(registry, versions[0], dry_run=True)
    refused = promote(registry, versions[0], dry_run=True, gates=[lambda context: False])

    assert (report.outcome, refused.outcome) == ("accepted", "refused")
    assert report.evidence is None
    assert registry.holder() is None
    assert registry.client.get_model_version(registry.name, versions[0]).tags == before.tags
    assert sorted(registry.stored(versions[0]).rglob("*")) == files


def test_aliases_have_histories_of_their_own(registry, versions):
    promote(registry, versions[0])
    promote(registry, versions[1], "canary")

    assert (registry.holder("champion"), registry.holder("canary")) == (versions[0], versions[1])
    assert [m.to_version for m in history(registry.name, "canary")] == [versions[1]]
    with pytest.raises(PromotionError, match="Nobody held"):
        mlflow_trt.rollback(registry.name, "canary")


@on_both
def test_rollback_goes_back_through_the_whole_history(registry, versions):
    for version in versions:
        promote(registry, version)

    back = [mlflow_trt.rollback(registry.name) for _ in versions[1:]]

    assert [r.outcome for r in back] == ["rolled back"] * 2
    assert [r.version for r in back] == [versions[1], versions[0]]
    assert registry.holder() == versions[0]
    with pytest.raises(PromotionError, match="Nobody held"):
        mlflow_trt.rollback(registry.name)
    assert [m.kind for m in history(registry.name)] == ["promote"] * 3 + ["rollback"] * 2
    assert [m.number for m in history(registry.name)] == [1, 2, 3, 4, 5]
    assert promote(registry, versions[2]).promoted, "what was rolled back can come again"
    assert mlflow_trt.rollback(registry.name).version == versions[0]


def test_rollback_passes_over_a_deleted_version(registry, versions):
    for version in versions:
        promote(registry, version)
    registry.client.delete_model_version(registry.name, versions[1])

    report = mlflow_trt.rollback(registry.name)

    assert report.version == versions[0]
    assert versions[1] in report.reasons[0]
    assert "deleted" in report.reasons[0]


def test_an_alias_set_by_hand_is_recorded_as_where_it_came_from(registry, versions):
    registry.client.set_registered_model_alias(registry.name, "champion", versions[0])

    promote(registry, versions[1])
    registry.client.set_registered_model_alias(registry.name, "champion", versions[2])

    assert history(registry.name)[0].from_version == versions[0]
    assert mlflow_trt.rollback(registry.name).version == versions[1], "before the hand there was the promotion"
    assert mlflow_trt.rollback(registry.name).version == versions[0]


def test_a_champion_set_by_hand_still_has_to_pass(registry, versions):
    registry.client.set_registered_model_alias(registry.name, "champion", versions[0])

    refused = promote(registry, versions[0], gates=[lambda context: "No."])
    passed = promote(registry, versions[0])

    assert refused.outcome == "refused"
    assert passed.promoted, "it holds the alias, but nothing was known for it"
    assert [m.to_version for m in history(registry.name)] == [versions[0]]


def test_gates_see_candidate_and_champion(registry, versions):
    seen = []

    def look(context: GateContext):
        seen.append((context.candidate.version, context.champion and context.champion.version, context.candidate.uri))
        return True

    promote(registry, versions[0], gates=[look])
    promote(registry, versions[1], gates=[look])

    uri = f"models:/{registry.name}/"
    assert seen == [(versions[0], None, uri + versions[0]), (versions[1], versions[0], uri + versions[1])]


@pytest.mark.parametrize("answer", [None, 1, object()], ids=["nothing", "a number", "something"])
def test_a_gate_that_answers_no_verdict_lets_nothing_pass(registry, versions, answer):
    with pytest.raises(PromotionError, match="<lambda>"):
        promote(registry, versions[0], gates=[lambda context: answer])

    assert registry.holder() is None


def test_a_gate_that_breaks_lets_nothing_pass(registry, versions):
    def broken(context):
        return context.nothing

    with pytest.raises(PromotionError, match=r"broken.*AttributeError"):
        promote(registry, versions[0], gates=[broken])

    assert registry.holder() is None


@pytest.mark.parametrize("alias", ["", "latest", "v3", "a b", "a/b", "a.b"])
def test_an_alias_that_mlflow_does_not_allow_is_refused(alias):
    with pytest.raises(SettingError, match="alias"):
        mlflow_trt.promote("classifier", 1, alias)


def test_a_missing_version_names_those_that_exist(registry, versions):
    with pytest.raises(PromotionError, match=r"no version 9.*\n.*1, 2, 3"):
        promote(registry, 9)


@on_both
def test_a_copy_keeps_the_evidence_reachable(registry, versions):
    """From a name for development to one for production, and on: copies are by reference, and chain."""
    first = promote(registry, versions[1])
    production, factory = f"{registry.name}-prod", f"{registry.name}-factory"

    registry.client.copy_model_version(f"models:/{registry.name}/{versions[1]}", production)
    second = mlflow_trt.promote(production, 1, gates=LIGHT)
    registry.client.copy_model_version(f"models:/{production}/1", factory)
    third = mlflow_trt.promote(factory, 1, gates=LIGHT)

    assert [r.outcome for r in (first, second, third)] == ["promoted"] * 3
    moves = evidence(factory, 1)
    assert {m.name for m in moves} == {registry.name, production, factory}
    assert {m.id for m in moves} == {first.id, second.id, third.id}
    for move in moves:
        assert json.loads(mlflow.artifacts.load_text(f"{move.report}/report.json"))["name"] == move.name
    assert [m.to_version for m in history(factory)] == ["1"], "the histories of other names are not its own"
    with pytest.raises(PromotionError, match="Nobody held"):
        mlflow_trt.rollback(factory)


def test_a_name_with_a_quote_and_a_long_one_work(registry):
    version = registry.log(forged.plan())
    for name in ("it's", "n" * 240):
        registry.again(version, _made(registry, name))
        assert mlflow_trt.promote(name, 1, gates=LIGHT).promoted
        registry.again(version, name)
        assert mlflow_trt.promote(name, 2, gates=LIGHT).promoted
        assert mlflow_trt.rollback(name).version == "1"


def _made(registry, name):
    registry.client.create_registered_model(name)
    return name


def test_the_first_engine_may_replace_another_flavor(registry):
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    mlflow.pyfunc.log_model(name="other", python_model=Other(), registered_model_name=registry.name)
    registry.client.set_registered_model_alias(registry.name, "champion", "1")
    version = registry.log(forged.plan())

    refused = promote(registry, version)
    allowed = promote(registry, version, allow_not_measured=["contract"])

    assert [v.gate for v in refused.verdicts if v.blocks] == ["contract"]
    assert "another flavor" in refused.verdicts[1].reasons[0]
    assert allowed.promoted
    assert mlflow_trt.rollback(registry.name).version == "1"
