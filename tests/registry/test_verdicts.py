"""What a gate's answer counts as."""

from __future__ import annotations

import json

import pytest

from mlflow_trt.registry.verdicts import Chart, Mark, Table, Verdict


@pytest.mark.parametrize(
    ("status", "allowed", "blocks"),
    [
        ("passed", False, False),
        ("passed", True, False),
        ("failed", False, True),
        ("failed", True, True),  # what may be missing may not be wrong
        ("not_measured", False, True),
        ("not_measured", True, False),
    ],
)
def test_what_blocks_a_promotion(status, allowed, blocks):
    verdict = Verdict("parity", status, allowed=allowed)
    assert verdict.blocks is blocks
    assert verdict.to_dict()["blocks"] is blocks


def test_tables_charts_and_figures_are_json():
    mark = Mark("p50", 0.9, 1.0, 1.1, True)
    verdict = Verdict(
        *("latency", "passed", ("as fast",)),
        tables=(Table("t", ("a",), (("1",),)),),
        charts=(Chart("c", "ratio", (mark,), 1.05),),
        figures={"ratio": 1.0},
    )
    content = json.loads(json.dumps(verdict.to_dict()))
    assert content["tables"] == [{"title": "t", "columns": ["a"], "rows": [["1"]]}]
    assert content["charts"][0]["marks"][0] == vars(mark)
    assert content["charts"][0]["limit"] == 1.05
    assert content["figures"] == {"ratio": 1.0}
