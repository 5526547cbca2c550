"""The same function in plain operators: those that TensorRT's parser takes, and no functions of the model's own."""

from __future__ import annotations

from . import branches, classical, functions, integers, loops, outputs
from .checks import check_operators, check_outputs
from .model import OnnxModel
from .pruning import prune
from .skeleton import filled, skeleton


def plain(model: OnnxModel) -> OnnxModel:
    """Rewrites a model so that TensorRT's parser takes it.

    Args:
        model: What :func:`.model.read` gave. Sizes that are fixed (:func:`.model.fixed`) may decide more branches.

    Returns:
        A model that answers the same; the same model, where nothing is to be done. Class names are no outputs any more,
        and dictionaries of probabilities are tensors.

    Raises:
        UnsupportedOperatorError: It has operators that are not ONNX's own, or random ones.
        ConversionError: It has outputs that an engine can't have, functions that can't be written out, or arithmetic in
            int8.
    """
    own = skeleton(model.proto)
    made = functions.inlined(own)
    for step in (classical.rewritten, branches.decided, loops.conditioned, outputs.renamed):
        made = step(made)
    pruned = prune(made)
    check_operators(made)
    check_outputs(made)
    integers.check(made)
    return OnnxModel(filled(made, model.proto), model.folder) if pruned or made is not own else model
