"""Whatever the package imports, it says so to whoever installs it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mlflow_trt

PACKAGE = Path(mlflow_trt.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"

DISTRIBUTIONS = {
    "cuda.bindings": "cuda-bindings",
    "cuda.core": "cuda-core",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "mlflow": "mlflow-skinny",
    "prometheus_client": "prometheus-client",
    "tensorrt_lean": "tensorrt-lean-cu13-bindings",
    "tensorrt_rtx": "tensorrt-rtx",
    "torch_tensorrt": "torch-tensorrt",
    "yaml": "PyYAML",
}
"""What is imported → what is installed, where the two have different names."""
CALLERS = {"modelopt"}
"""What is imported only where the caller's own program has imported it already."""

pytestmark = pytest.mark.skipif(not PROJECT.exists(), reason="needs this package's source")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported by an absolute name, at the top and in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
            # "from cuda import bindings" names a package that only its second part tells.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module in ("cuda", "google"))


def distribution(module: str) -> str | None:
    """The distribution that has a module; None: Python's own, this package's, a caller's, or a namespace."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names or parts[0] in (PACKAGE.name, *CALLERS) or module in ("cuda", "google"):
        return None
    two = ".".join(parts[:2])
    return DISTRIBUTIONS.get(two) or DISTRIBUTIONS.get(parts[0]) or parts[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = {
        name: lines for name, lines in project["optional-dependencies"].items() if name not in ("test", "docs", "dev")
    }
    lines = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    return {normal(Requirement(line).name) for line in lines}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_is_a_declared_dependency(path):
    modules = imported(ast.parse(path.read_text(encoding="utf-8")))
    needed = {name: module for module in modules if (name := distribution(module)) is not None}
    assert not {name: module for name, module in needed.items() if normal(name) not in declared()}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import yaml", ["PyYAML"]),
        ("def f():\n    import uvicorn.config", ["uvicorn"]),
        ("from cuda import bindings", ["cuda-bindings"]),
        ("from cuda.core import Device", ["cuda-core"]),
        ("import json, os.path\nfrom . import store\nfrom mlflow_trt import plan", []),
    ],
)
def test_imports_are_seen_wherever_they_stand(source, expected):
    names = (distribution(module) for module in imported(ast.parse(source)))
    assert [name for name in names if name is not None] == expected
