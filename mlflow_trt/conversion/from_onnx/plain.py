"""The same function in plain operators: those that TensorRT's parser takes, and no functions of the model's own."""

from __future__ import annotations

from .functions import inlined
from .model import OnnxModel
from .skeleton import filled, skeleton


def plain(model: OnnxModel) -> OnnxModel:
    """Rewrites a model so that TensorRT's parser takes it.

    Args:
        model: What :func:`.model.read` gave. Sizes that are fixed (:func:`.model.fixed`) may decide more.

    Raises:
        UnsupportedOperatorError: It has operators that neither the parser nor ONNX knows.
        ConversionError: It has inputs or outputs that an engine can't have, or functions that can't be written out.
    """
    made = inlined(skeleton(model.proto))
    return OnnxModel(filled(made, model.proto), model.folder)
