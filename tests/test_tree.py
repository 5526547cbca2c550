"""The package's map: few entries at its top, a name means one thing, and the tests mirror it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "mlflow_trt"
MOST = 20

NO_NAMESAKE = {
    "__init__.py": "public names, which test_api.py resolves",
    "conversion/__init__.py": "says what to install where torch is missing: cli/test_main.py",
    "plan/__init__.py": "names of its modules, in all tests of plans",
    "engine/__init__.py": "load: engine/test_load.py",
    "engine/cuda.py": "an edge, in all tests of the engine on the stand-in, and in engine/test_on_a_gpu.py",
    "serving/http/codec_process.py": "a process of its own: serving/http/test_codec.py asks it",
    "serving/http/server.py": "an edge: serving/http/test_connection.py and serving/test_shutdown.py",
    "_mlflow.py": "an edge: flavor/test_save.py and test_mlmodel.py look at what it writes",
}
"""Modules that decide something and have no test of their name, and where they are tested instead."""

DECISIONS = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.BoolOp, ast.Compare, ast.comprehension)


def decides(path: Path) -> bool:
    """Whether a module has a function that may do one thing or another: declarations and plain calls may not."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions))
    return any(isinstance(inner, DECISIONS) for node in found for inner in ast.walk(node))


def namesake(module: Path) -> Path:
    """The test of a module, by its path within the package."""
    return module.with_name(f"test_{module.stem.strip('_')}.py")


MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
DECIDING = [module for module in MODULES if decides(PACKAGE / module)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A = 1 if B else 2", False),
        ("class A:\n    x: int\n    def m(self): return self.x", False),
        ("def f(x): return g(x)", False),
        ("def f(x): return x or 1", True),
        ("class A:\n    def m(self): return [x for x in self]", True),
        ("async def f():\n    try: g()\n    finally: h()", True),
    ],
)
def test_what_decides(tmp_path, source, expected):
    (tmp_path / "module.py").write_text(source)
    assert decides(tmp_path / "module.py") is expected


def test_modules_are_found():
    assert len(DECIDING) > 70


@pytest.mark.parametrize("module", DECIDING, ids=str)
def test_each_module_that_decides_has_a_test_of_its_name(module):
    reason = NO_NAMESAKE.get(module.as_posix())
    there = (TESTS / namesake(module)).exists()
    assert there or reason, f"tests/{namesake(module)} is missing; or say in NO_NAMESAKE where it is tested instead"
    assert not (there and reason), "no exception is needed"


def test_exceptions_are_modules_that_decide():
    assert set(NO_NAMESAKE) <= {module.as_posix() for module in DECIDING}


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
