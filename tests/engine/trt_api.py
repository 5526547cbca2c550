"""What ``mlflow_trt/runtime`` uses of TensorRT, read from its source, and whether a TensorRT module has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parents[2] / "mlflow_trt" / "engine"

_OBJECTS = {
    "trt": "",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "config": "IRuntimeConfig",
    "inspector": "EngineInspector",
    "severity": "ILogger.Severity",
}
"""As the source calls TensorRT's objects, underscores aside → their class; "" is the module."""

_OTHERS = {"host.py", "__init__.py", "compatibility.py", "reference.py"}
"""Files in which these names mean something else."""

ONLY_RTX = {
    "CudaGraphStrategy.DISABLED",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
"""Used only where the module has them (``Core.is_rtx``, ``Deserialized._validity``)."""

NOT_IN_LEAN = {
    "EngineInspector.get_engine_information",
    "TensorFormat.LINEAR",
    "ICudaEngine.create_engine_inspector",
    "ICudaEngine.get_tensor_format",
}
"""The lean module lacks these two types, and so calls that return them raise."""


class Use(NamedTuple):
    """One use of TensorRT."""

    name: str
    """``"ICudaEngine.get_tensor_name"``."""
    arguments: int | None
    """How many a call gives; None: it is not called."""


def used() -> set[Use]:
    """All uses in the source."""
    return {use for path in sorted(_FOLDER.glob("*.py")) if path.name not in _OTHERS for use in _uses(path)}


def missing(trt: Any, uses: set[Use]) -> list[str]:
    """What a module lacks, or calls otherwise, or can't return."""
    return sorted({use.name for use in uses if not _has(trt, use)})


def _uses(path: Path) -> Iterator[Use]:
    tree = ast.parse(path.read_text())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or (id(node) in inner and id(node) not in calls):
            continue
        parts = ast.unparse(node).split(".")
        places = [place for place, part in enumerate(parts[:-1]) if part.lstrip("_") in _OBJECTS]
        if not places:
            continue
        owner, names = _OBJECTS[parts[places[-1]].lstrip("_")], parts[places[-1] + 1 :]
        names = names[: next((place for place, part in enumerate(names) if part.startswith("__")), len(names))]
        if names and all(part.isidentifier() and not part.startswith("_") for part in names):
            yield Use(".".join([owner, *names]).lstrip("."), len(calls[id(node)].args) if id(node) in calls else None)


def _has(trt: Any, use: Use) -> bool:
    found = trt
    for part in use.name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    if use.arguments is None or isinstance(found, type):
        return True
    overloads = re.findall(rf"\b{use.name.split('.')[-1]}\((self[^\n]*)\) -> ([^\n]+)", found.__doc__ or "")
    return any(
        # With "::" it is a C++ type that has no name in Python, at least when this text was made.
        ("::" not in returned or hasattr(trt, returned.split("::")[-1]))
        and sum("=" not in p for p in _parameters(text)) <= use.arguments <= len(_parameters(text))
        for text, returned in overloads
    )


def _parameters(text: str) -> list[str]:
    """The parameters of pybind11's signature without self; no type in it holds a comma outside brackets."""
    return re.split(r", (?![^\[]*\])", text)[1:]
