"""Functions that a model brings along, written out where they are called: not every reader of a graph knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConversionError
from .graphs import inner

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto


def inlined(skeleton: ModelProto) -> ModelProto:
    """A model without functions of its own.

    Args:
        skeleton: The model; it is not changed.

    Raises:
        ConversionError: A function can't be written out.
    """
    from onnx import ModelProto, inliner

    if not skeleton.functions:
        return skeleton
    own = {opset.domain: opset.version for opset in skeleton.opset_import}
    made = ModelProto()
    made.CopyFrom(skeleton)
    alike = [_as_in(function, own) for function in made.functions]
    try:
        # Only then: its conversion of versions fails where a type is not known.
        made = inliner.inline_local_functions(made, convert_version=not all(alike))
    except Exception as error:  # of native code
        raise _refused(skeleton, f": {' '.join(str(error).split())[:300]}") from error
    if made.functions:
        raise _refused(made, "")
    return made


def _as_in(function: FunctionProto, own: dict[str, int]) -> bool:
    """Says of a function that it is of the graph's opsets, where all its operators are the same in both."""
    same = True
    for opset in function.opset_import:
        version = own.setdefault(opset.domain, opset.version)
        if opset.version != version:
            if all(_is_same(node, opset.domain, opset.version, version) for node in function.node):
                opset.version = version
            else:
                same = False
    return same


def _is_same(node: NodeProto, domain: str, one: int, other: int) -> bool:
    from onnx import defs

    if any(not _is_same(each, domain, one, other) for graph in inner(node) for each in graph.node):
        return False
    if node.domain != domain or not (defs.has(node.op_type, one, domain) and defs.has(node.op_type, other, domain)):
        return bool(node.domain != domain)
    schemas = (defs.get_schema(node.op_type, version, domain) for version in (one, other))
    return len({schema.since_version for schema in schemas}) == 1


def _refused(model: ModelProto, why: str) -> ConversionError:
    names = ", ".join(f"{function.domain}.{function.name}" for function in model.functions)
    return ConversionError(
        f"Functions of the model can't be written out where they are called ({names}){why}.",
        "functions of the opset that the graph is of",
        "export the model without functions, or in one opset",
    )
