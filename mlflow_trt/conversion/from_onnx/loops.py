"""A Loop that only counts gets the condition that it may leave out: TensorRT's parser wants one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .graphs import nodes
from .writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def conditioned(skeleton: ModelProto) -> ModelProto:
    """A model each of whose Loops has a condition.

    Args:
        skeleton: The model; it is not changed.
    """
    from onnx import ModelProto

    if not any(map(_counts_only, nodes(skeleton))):
        return skeleton
    made = ModelProto()
    made.CopyFrom(skeleton)
    always = Writer(made).constant(np.array(True))
    for node in filter(_counts_only, nodes(made)):
        node.input[1] = always
    return made


def _counts_only(node: NodeProto) -> bool:
    return node.op_type == "Loop" and not node.input[1]
