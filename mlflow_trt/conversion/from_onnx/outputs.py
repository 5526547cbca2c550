"""An output that is an input gets a name of its own: an engine's inputs and outputs are told apart by their names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto

_logger = logging.getLogger(__name__)


def renamed(skeleton: ModelProto) -> ModelProto:
    """A model none of whose outputs is an input.

    Args:
        skeleton: The model; it is not changed.
    """
    from onnx import ModelProto

    fed = {value.name for value in skeleton.graph.input}
    if not any(value.name in fed for value in skeleton.graph.output):
        return skeleton
    made = ModelProto()
    made.CopyFrom(skeleton)
    writer = Writer(made)
    for value in made.graph.output:
        if value.name in fed:
            name = writer.write("Identity", value.name, out=writer.new(f"{value.name}.out"))
            _logger.warning("The output %s is an input too; it is called %s.", value.name, name)
            value.name = name
    made.graph.node.extend(writer.nodes)
    return made
