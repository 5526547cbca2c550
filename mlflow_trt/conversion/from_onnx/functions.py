"""Functions that a model brings along, written out where they are called: not every reader of a graph knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConversionError

if TYPE_CHECKING:
    from onnx import ModelProto


def inlined(skeleton: ModelProto) -> ModelProto:
    """A model without functions of its own.

    Raises:
        ConversionError: A function can't be written out.
    """
    from onnx import inliner

    if not skeleton.functions:
        return skeleton
    made: ModelProto = inliner.inline_local_functions(skeleton, convert_version=True)
    if made.functions:
        names = ", ".join(f"{function.domain}.{function.name}" for function in made.functions)
        raise ConversionError(
            f"Functions of the model can't be written out where they are called: {names}.",
            "functions of the opset that the graph is of",
            "export the model without functions",
        )
    return made
