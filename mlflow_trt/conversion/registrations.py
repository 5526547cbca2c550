"""Operators that a package registers when it is imported: what another process has to import to know them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .._torch import OpOverload, module_of_custom_op, sources_of_fake
from ..errors import UnsupportedOperatorError

_TORCHS_OWN = ("aten", "prim", "prims", "quantized", "mkldnn", "onednn", "inductor", "_c10d_functional", "higher_order")
_MODELOPT = "modelopt.torch.quantization"


def modules_of(program: ExportedProgram) -> list[str]:
    """The modules whose import registers a program's operators, each once.

    Raises:
        UnsupportedOperatorError: No module that another process could import registers one of them.
    """
    modules: list[str] = []
    for node in _nodes(program):
        target = node.target
        if not isinstance(target, OpOverload) or target.namespace in _TORCHS_OWN:
            continue
        quantizes = target.namespace == "tensorrt" and _MODELOPT in sys.modules
        module = _MODELOPT if quantizes else _registering(target)
        if module is None or module == "__main__":
            raise UnsupportedOperatorError(
                f"{node.name} is an operator of its own, {target}, and was registered "
                f"{'in __main__' if module else 'by no module that is known'}: the building process can't import it.",
                "operators of PyTorch, or of a module that can be imported",
                "replace it by operators of PyTorch; Torch-TensorRT has converters for these alone, unless one is "
                "registered in the module that registers the operator",
                (f"torch.ops.{target}",),
            )
        if module not in modules:
            modules.append(module)
    return modules


def _nodes(program: ExportedProgram) -> list[Node]:
    graphs = [getattr(module, "graph", None) for module in program.graph_module.modules()]
    return [node for graph in graphs if graph is not None for node in graph.nodes]


def _registering(target: OpOverload) -> str | None:
    """The module that registered an operator, as far as torch tells; else the one that its namespace is named after."""
    name = f"{target.namespace}::{target._schema.name.split('::')[-1]}"
    return (
        module_of_custom_op(name) or _of_fake(name) or _of_library(target.namespace) or _of_namespace(target.namespace)
    )


def _of_fake(name: str) -> str | None:
    """Of ``torch.library.register_fake``: torch notes the file that it was called in."""
    files = sources_of_fake(name)
    return next((name for name, module in _loaded() if getattr(module, "__file__", None) in files), None)


def _of_library(namespace: str) -> str | None:
    """Of ``torch.library.Library``: the module that keeps it."""
    for name, module in _loaded():
        for value in list(vars(module).values()):
            if type(value) is torch.library.Library and value.ns == namespace:
                return name
    return None


def _of_namespace(namespace: str) -> str | None:
    module = sys.modules.get(namespace)
    return namespace if inspect.ismodule(module) and getattr(module, "__file__", None) else None


def _loaded() -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in list(sys.modules.items())
        if inspect.ismodule(module) and not name.startswith("torch.")
    ]
