"""The same function in plain operators: those that TensorRT's parser takes, and no functions of the model's own."""

from __future__ import annotations

from . import branches, classical, functions, loops
from .checks import check_operators, check_outputs
from .model import OnnxModel
from .pruning import prune
from .skeleton import filled, skeleton


def plain(model: OnnxModel) -> OnnxModel:
    """Rewrites a model so that TensorRT's parser takes it; twice is as good as once.

    Args:
        model: What :func:`.model.read` gave. Sizes that are fixed (:func:`.model.fixed`) may decide more.

    Raises:
        UnsupportedOperatorError: It has operators that neither the parser nor ONNX knows.
        ConversionError: It has outputs that an engine can't have, or functions that can't be written out.
    """
    made = functions.inlined(skeleton(model.proto))
    made = loops.conditioned(branches.decided(classical.rewritten(made)))
    prune(made)
    check_operators(made)
    check_outputs(made)
    return OnnxModel(filled(made, model.proto), model.folder)
