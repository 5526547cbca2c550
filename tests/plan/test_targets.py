"""How runtimes, releases and compute capabilities are spelled and compared."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mlflow_trt
from mlflow_trt.plan import targets
from mlflow_trt.plan.host import parse_host

PACKAGE = Path(mlflow_trt.__file__).parent


@pytest.mark.parametrize("value", ["8.9", 8.9, "sm89", "SM89", "sm_89", " sm89 ", (8, 9), [8, 9], "89"])
def test_one_capability_in_many_spellings(value):
    assert targets.parse_capability(value) == "8.9"


@pytest.mark.parametrize("value", ["ampere", "", "sm", "8", "8.9.1", "NONE", "CURRENT", None, "sm1234"])
def test_what_is_none(value):
    assert targets.parse_capability(value) is None


@pytest.mark.parametrize("capability", targets.RTX_CAPABILITIES)
def test_a_capability_comes_back(capability):
    assert targets.parse_capability(targets.sm(capability)) == capability
    assert targets.parse_capability(targets.sm(capability).upper()) == capability
    assert targets.parse_capability(targets.architecture(capability)) == capability
    assert parse_host(targets.architecture(capability)).capability == capability


def test_each_place_has_its_spelling():
    assert (targets.sm("12.0"), targets.architecture("12.0")) == ("sm120", "sm_120")


def test_what_tensorrt_rtx_names():
    rtx = pytest.importorskip("tensorrt_rtx")
    named = {targets.sm(c).upper() for c in targets.RTX_CAPABILITIES}
    assert {m for m in rtx.ComputeCapability.__members__ if m.startswith("SM")} <= named


def test_numbers_compare_as_numbers():
    ordered = ["10.x", "1.4.0.76", "1.6.1.120", "1.10", "10.3.0", "10.15.1.29+cu13"]
    shuffled = [ordered[place] for place in (3, 0, 5, 1, 4, 2)]
    assert sorted(shuffled, key=targets.numbers) == ordered
    assert list(targets.RTX_CAPABILITIES) == sorted(targets.RTX_CAPABILITIES, key=targets.numbers)
    assert targets.numbers("8.9") == (8, 9)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_versions_are_taken_apart_nowhere_else(path):
    if path != PACKAGE / "plan" / "targets.py":
        tree = ast.parse(path.read_text())
        held = [e for node in ast.walk(tree) if isinstance(node, (ast.Tuple, ast.List, ast.Set)) for e in [node.elts]]
        texts = [[e.value for e in each if isinstance(e, ast.Constant) and isinstance(e.value, str)] for each in held]
        assert not any(sum(bool(re.fullmatch(r"\d{1,2}\.\d", t)) for t in each) > 2 for each in texts)
        assert not re.search(r"int\(\w+\) for \w+ in \w+\.split\(\"\.\"\)", path.read_text())
        assert not re.search(r"""sm_?\{|replace\(['"]\.['"], ['"]{2}\)""", path.read_text()), "a capability is spelled"
