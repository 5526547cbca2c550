"""The report as a page: everything that was found is on it, safe to show, drawn without anything from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mlflow_trt.registry.html_report import plot
from mlflow_trt.registry.report import PromotionReport
from mlflow_trt.registry.verdicts import Chart, Mark, Table, Verdict

MARKS = (Mark("profile 0 opt, p50", 0.97, 0.99, 1.01, True), Mark("profile 0 opt, p99", 1.1, 1.2, 1.4, False))
CHART = Chart("Latency, candidate over champion", "ratio", MARKS, 1.05)
VERDICTS = (
    Verdict(
        "latency", "failed", ("p99: 1.2 times the champion's",), (Table("t", ("a", "b"), (("1", "2"),)),), (CHART,)
    ),
    Verdict("parity", "not_measured", ("no GPU",), allowed=True),
    Verdict("mine", "passed", ("<script>alert(1)</script>",)),
)


def report(**changes):
    fields = {
        "id": "abc",
        "name": "<m>",
        "version": "3",
        "alias": "champion",
        "previous": "2",
        "who": "me",
        "when": "now",
    }
    return PromotionReport(**{**fields, "outcome": "refused", "verdicts": VERDICTS, **changes})


def test_the_page_shows_verdicts_reasons_tables_and_charts():
    page = report().to_html()

    for text in ("not measured, allowed", "1.2 times the champion", "<svg", "allowed: 1.05", "version 2", "<td>1</td>"):
        assert text in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<m>" not in page
    assert not re.search(r"https?:|//[a-z]|<link|<img|@import|url\(", page)


@pytest.mark.parametrize(
    "marks",
    [
        MARKS,
        (Mark("one", 1.0, 1.0, 1.0, True),),
        (Mark("zero", 0.0, 0.0, 0.0, True),),
        (Mark("huge", 1e308, 1.7976931348623157e308, 1.7976931348623157e308, False), *MARKS),
        (Mark("tiny", 1e-9, 1e-7, 1e-3, True),),
    ],
)
@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("limit", [None, 1.05])
def test_a_chart_is_well_formed_and_stays_inside(marks, logarithmic, limit):
    svg = plot(Chart("c", "ratio", marks, limit, logarithmic)).partition("</h3>")[2]

    drawn = ElementTree.fromstring(svg)
    width = float(drawn.attrib["width"])
    for element in drawn.iter():
        for name in ("x", "x1", "x2", "cx"):
            if name in element.attrib:
                assert 0 <= float(element.attrib[name]) <= width


def test_intervals_lie_in_order_along_the_axis():
    drawn = ElementTree.fromstring(plot(CHART).partition("</h3>")[2])

    circles = [float(e.attrib["cx"]) for e in drawn.iter() if e.tag.endswith("circle")]
    [limit] = {float(e.attrib["x1"]) for e in drawn.iter() if e.attrib.get("stroke-dasharray")}
    assert circles[0] < limit < circles[1]
