"""What a promotion, a history, a fleet and an upgrade look like on a terminal."""

from __future__ import annotations

import io

import pytest
from manifests import MANIFEST
from rich.console import Console

from mlflow_trt.cli import registry_tables
from mlflow_trt.plan.compatibility import check_all
from mlflow_trt.plan.host import parse_host
from mlflow_trt.registry.alias_history import Move
from mlflow_trt.registry.fleet import Change
from mlflow_trt.registry.report import PromotionReport
from mlflow_trt.registry.verdicts import Verdict

from .commands import ELSEWHERE, HERE


def shown(part):
    console = Console(file=io.StringIO(), width=160, markup=False, highlight=False)
    console.print(part)
    return console.file.getvalue()


def report(*verdicts, **changes):
    fields = {"id": "abc", "name": "[m]", "version": "3", "alias": "champion", "previous": "2", "who": "me"}
    return PromotionReport(**{**fields, "when": "now", "outcome": "refused", "verdicts": verdicts, **changes})


def test_a_promotion_shows_each_verdict_with_its_reasons_and_the_end():
    text = shown(
        registry_tables.of_promotion(
            report(
                Verdict("latency", "failed", ("too slow", "by far")),
                Verdict("parity", "not_measured", ("no GPU",), allowed=True),
                Verdict("contract", "not_measured", ("another flavor",)),
                reasons=("and so on",),
                evidence="models:/m-1/promotions/abc",
            )
        )
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["latency", "failed", "too", "slow"] in lines
    assert ["by", "far"] in lines
    assert ["parity", "not", "measured", "(allowed)", "no", "GPU"] in lines
    assert ["contract", "not", "measured", "another", "flavor"] in lines
    assert "[m] version 3 is refused as champion: latency, contract." in text
    assert text.endswith("and so on\nReport: models:/m-1/promotions/abc\n")


def test_without_verdicts_there_is_no_table():
    assert shown(registry_tables.of_promotion(report(outcome="unchanged"))) == "[m] version 3 is champion already.\n"


def move(number, **changes):
    fields = {"id": "abc", "name": "m", "alias": "champion", "kind": "promote", "from_version": None, "to_version": "1"}
    return Move(**{**fields, "number": number, "who": "me", "when": "now", "digest": None, **changes})


def test_a_history_names_the_report_or_the_note_of_each_move():
    moves = [move(1, report="models:/m-1/promotions/first"), move(2, kind="rollback", from_version="2", note="by hand")]
    lines = [line.split() for line in shown(registry_tables.of_history("m", "champion", moves)).splitlines()]
    assert ["1", "now", "promote", "1", "me", "first"] in lines
    assert ["2", "now", "rollback", "2", "1", "me", "by", "hand"] in lines


def test_an_alias_that_nobody_moved_says_so():
    assert shown(registry_tables.of_history("m", "canary", [])) == "No moves of m@canary are on record.\n"


def test_a_fleet_has_a_line_for_each_machine():
    reports = {name: check_all(MANIFEST, parse_host(text)) for name, text in (("edge", HERE), ("old", ELSEWHERE))}
    lines = [line.split() for line in shown(registry_tables.of_fleet(reports)).splitlines()]
    assert ["edge", "loads", "tensorrt_rtx-1.6.1.120-sm80-sm86-sm89"] in lines
    (old,) = [line for line in lines if line[:1] == ["old"]]
    assert old[1:4] == ["does", "not", "load"]
    assert len(old) > 8, "and why"


def change(version, verdict):
    return Change("m", version, ("champion",), "edge", verdict, "a reason")


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ([], "No registered model has a plan that tensorrt_rtx==1.7 concerns."),
        ([change("1", "loads"), change("2", "mended")], "Nothing would break."),
        (
            [change("1", "breaks"), change("1", "breaks"), change("2", "loads")],
            "1 version would break, or can't be read.",
        ),
        ([change("1", "breaks"), change("2", "unknown")], "2 versions would break, or can't be read."),
    ],
)
def test_an_upgrade_ends_with_what_would_break(changes, end):
    text = shown(registry_tables.of_changes("tensorrt_rtx==1.7", changes))
    assert text.splitlines()[-1] == end
    assert sum(line.startswith("m ") for line in text.splitlines()) == len(changes)
