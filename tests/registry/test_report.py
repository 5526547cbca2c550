"""What a promotion found: in one sentence, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from mlflow_trt.registry.alias_history import Move
from mlflow_trt.registry.report import PromotionReport
from mlflow_trt.registry.verdicts import Verdict

VERDICTS = (
    Verdict("latency", "failed", ("p99: 1.2 times the champion's",)),
    Verdict("parity", "not_measured", ("no GPU",), allowed=True),
    Verdict("mine", "passed", ("two\nlines",)),
)


def report(**changes):
    fields = {"id": "abc", "name": "m", "version": "3", "alias": "champion", "previous": "2", "who": "me"}
    return PromotionReport(**{**fields, "when": "now", "outcome": "refused", "verdicts": VERDICTS, **changes})


@pytest.mark.parametrize("outcome", ["promoted", "accepted", "refused", "lost", "unchanged", "rolled back"])
def test_every_outcome_has_a_sentence_and_a_page(outcome):
    made = report(outcome=outcome)

    assert "champion" in made.summary()
    assert made.summary() in made.text()
    assert f">{outcome}</span>" in made.to_html()


@pytest.mark.parametrize(
    ("outcome", "ok", "promoted"),
    [
        ("promoted", True, True),
        ("accepted", True, False),
        ("unchanged", True, False),
        ("rolled back", True, False),
        ("refused", False, False),
        ("lost", False, False),
    ],
)
def test_which_ends_are_good(outcome, ok, promoted):
    made = report(outcome=outcome)
    assert (made.ok, made.promoted) == (ok, promoted)


@pytest.mark.parametrize(
    ("outcome", "previous", "sentence"),
    [
        ("promoted", "2", "m version 3 is champion now (was version 2)."),
        ("promoted", None, "m version 3 is champion now."),
        ("rolled back", "2", "m@champion is version 3 again (was version 2)."),
        ("refused", "2", "m version 3 is refused as champion: latency."),
        ("unchanged", "3", "m version 3 is champion already."),
    ],
)
def test_the_sentence_names_the_version_before_and_the_gates_that_block(outcome, previous, sentence):
    assert report(outcome=outcome, previous=previous).summary() == sentence


def test_the_text_has_every_reason_and_where_the_evidence_is():
    text = report(reasons=("and so on",), evidence="models:/m-1/promotions/abc").text()
    assert text.splitlines()[1:] == [
        "  latency: failed",
        "    p99: 1.2 times the champion's",
        "  parity: not measured (allowed)",
        "    no GPU",
        "  mine: passed",
        "    two",
        "    lines",
        "and so on",
        "Evidence: models:/m-1/promotions/abc",
    ]


def test_another_end_keeps_the_reasons_unless_it_has_its_own():
    first = report(reasons=("as it was",))
    assert first.with_outcome("lost").reasons == ("as it was",)
    lost = first.with_outcome("lost", "somebody else")
    assert (lost.outcome, lost.reasons, lost.verdicts) == ("lost", ("somebody else",), VERDICTS)
    assert first.outcome == "refused"


def test_all_of_it_is_json():
    fields = {"number": 1, "id": "abc", "name": "m", "alias": "champion", "kind": "promote", "from_version": "2"}
    move = Move(**fields, to_version="3", who="me", when="now", digest=None)
    content = json.loads(json.dumps(report(move=move).to_dict()))
    assert content["move"]["to_version"] == "3"
    assert [(v["gate"], v["blocks"]) for v in content["verdicts"]] == [
        *(("latency", True), ("parity", False), ("mine", False))
    ]
    assert report().to_dict()["move"] is None
