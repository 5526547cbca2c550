"""What this package uses of TensorRT, read from its source, and whether a TensorRT module has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).parents[1] / "mlflow_trt"

_OTHERS = {"host.py", "__init__.py", "compatibility.py", "reference.py"}
"""Files of the engine in which the names below mean something else."""


class Source(NamedTuple):
    """Modules that use TensorRT."""

    files: tuple[Path, ...]
    objects: Mapping[str, str]
    """As they call TensorRT's objects, underscores aside → their class; "" is the module."""


RUNTIME = Source(
    tuple(path for path in sorted((_PACKAGE / "engine").glob("*.py")) if path.name not in _OTHERS),
    {
        "trt": "",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "runtime": "Runtime",
        "config": "IRuntimeConfig",
        "inspector": "EngineInspector",
        "severity": "ILogger.Severity",
    },
)
"""What runs an engine."""

BUILDER = Source(
    tuple(_PACKAGE / "conversion" / name for name in ("builder.py", "onnx_parser.py")),
    {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "flags": "BuilderFlag",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
    },
)
"""What makes one from ONNX."""

NETWORK = Source(
    (_PACKAGE / "conversion" / "network.py",),
    {"trt": "", "net": "INetworkDefinition", "layer": "ILayer", "tensor": "ITensor"},
)
"""What looks at the network that it is made of."""

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
    """How many a call gives; None: it is not called, or the source does not tell."""


def used(*sources: Source) -> set[Use]:
    """All uses in these."""
    return {use for source in sources for path in source.files for use in _uses(path, source.objects)}


def missing(trt: Any, uses: set[Use]) -> list[str]:
    """What a module lacks, or calls otherwise, or can't return."""
    return sorted({use.name for use in uses if not _has(trt, use)})


def _uses(path: Path, objects: Mapping[str, str]) -> Iterator[Use]:
    tree = ast.parse(path.read_text())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or (id(node) in inner and id(node) not in calls):
            continue
        parts = ast.unparse(node).split(".")
        places = [place for place, part in enumerate(parts[:-1]) if part.lstrip("_") in objects]
        if not places:
            continue
        owner, names = objects[parts[places[-1]].lstrip("_")], parts[places[-1] + 1 :]
        names = names[: next((place for place, part in enumerate(names) if part.startswith("__")), len(names))]
        if names and all(part.isidentifier() and not part.startswith("_") for part in names):
            yield Use(".".join([owner, *names]).lstrip("."), _arguments(calls.get(id(node))))


def _arguments(call: ast.Call | None) -> int | None:
    """How many a call gives; None where the source does not tell."""
    known = call is not None and not any(isinstance(argument, ast.Starred) for argument in call.args)
    return len(call.args) if call is not None and known else None


def _has(trt: Any, use: Use) -> bool:
    found = trt
    for part in use.name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
        if isinstance(found, property):
            return True  # of what it gives, the class does not tell
    if use.arguments is None or isinstance(found, type):
        return True
    overloads = re.findall(rf"\b{use.name.split('.')[-1]}\((self[^\n]*)\) -> ([^\n]+)", found.__doc__ or "")
    return any(
        # With "::" it is a C++ type that has no name in Python, at least when this text was made.
        ("::" not in returned or any(hasattr(trt, name) for name in _pythons(returned.split("::")[-1])))
        and sum("=" not in p for p in _parameters(text)) <= use.arguments <= len(_parameters(text))
        for text, returned in overloads
    )


def _pythons(name: str) -> tuple[str, str]:
    """What a type of C++ may be called in Python: IParserError is ParserError."""
    return name, name.removeprefix("I")


def _parameters(text: str) -> list[str]:
    """The parameters of pybind11's signature without self; no type in it holds a comma outside brackets."""
    return re.split(r", (?![^\[]*\])", text)[1:]
