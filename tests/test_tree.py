"""The package's map: few entries at its top, and a name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "mlflow_trt"
MOST = 20


def test_the_top_level_is_seen_at_a_glance():
    aside = ("__pycache__", "py.typed")  # Python's own, and a mark that typing has to find there
    entries = [path.name for path in PACKAGE.iterdir() if path.name not in aside]
    assert len(entries) <= MOST, sorted(entries)


def test_no_two_classes_of_one_name():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert len(places) > 100
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
