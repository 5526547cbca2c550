"""What one module writes and another reads has one name, which stands in one place."""

import ast
from collections import defaultdict
from pathlib import Path

import mlflow_trt
from mlflow_trt.evidence import names
from mlflow_trt.plan import files, manifest

PACKAGE = Path(mlflow_trt.__file__).parent
SHARED = {
    *(value for key, value in vars(names).items() if key.isupper()),
    *(getattr(files, key) for key in ("MODEL_PLAN", "RUNTIME_CACHE", "PROGRAM", "GOLDEN_INPUTS", "GOLDEN_OUTPUTS")),
    manifest.FILE_NAME,
}
OTHERS = {"mlflow_trt.access", "mlflow_trt.serving", "mlflow_trt.refused", "mlflow_trt.take"}
"""Loggers, and a key of an ASGI scope: no tags, but named alike."""


def literals(source: str) -> set[str]:
    """Strings of a module that are no docstrings, those inside f-strings too."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


def modules_by_name() -> dict[str, set[str]]:
    modules: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for text in literals(path.read_text()):
            for name in SHARED:
                if name == text or (name in text and "." in name and name.startswith(("mlflow_trt.", "trt."))):
                    modules[name].add(str(path.relative_to(PACKAGE)))
    return modules


def test_a_shared_name_is_a_literal_in_one_module():
    twice = {name: modules for name, modules in modules_by_name().items() if len(modules) > 1}
    assert not twice


def test_every_tag_has_a_name():
    tags = set()
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "evidence" / "names.py":
            tags |= {
                t for t in literals(path.read_text()) if t.startswith("mlflow_trt.") and t.islower() and " " not in t
            }
    modules = {t for t in tags if (PACKAGE.parent / Path(*t.split("."))).with_suffix(".py").exists()}
    assert tags - modules - OTHERS == set()


def test_every_parameter_and_metric_has_a_name():
    """Names with a variable part too: their literal is what the f-string begins with."""
    elsewhere = {
        (str(path.relative_to(PACKAGE)), text)
        for path in PACKAGE.rglob("*.py")
        for text in literals(path.read_text())
        if text.startswith("trt.") and path != PACKAGE / "evidence" / "names.py"
    }
    assert not elsewhere


def test_what_is_logged_has_the_names_that_readers_know():
    assert names.setting_param("optimization_level") == "trt.settings.optimization_level"
    assert names.seconds_metric("build") == "trt.seconds.build"
    assert names.parity_metric("rel_l2") == "trt.parity.rel_l2"
    assert names.latency_metric(0, "opt", "p50_ms") == "trt.latency.0.opt.p50_ms"
