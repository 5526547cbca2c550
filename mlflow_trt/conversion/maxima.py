"""Maxima of a product with what a convolution answered, written as clips and choices.

TensorRT-RTX 1.4.0.76 and 1.6.1.120 drop them in float32, and answer the product itself, where that is large:
squeeze-and-excitation of 228 channels with a ReLU6 after it (timm's ``rexnet_100``), a gated convolution with a ReLU.
A ReLU, a lower bound and an absolute value are lost, and so is a ReLU written as a choice of zero and the value. An
absolute value written as a choice is kept, and so is a clip (``benchmarks/maxima.py``, with either release).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from .operators import CASTS, VIEWS, operator_name
from .rewrites import CallFunction

aten = torch.ops.aten

NAMES = ("relu", "relu6", "hardtanh", "clamp", "clamp_min", "abs", "maximum", "max")
"""Operations that are, or begin with, a maximum."""

_PASSED = (*NAMES, *VIEWS, *CASTS, "dropout", "neg", "minimum", "min", "clamp_max")
"""What may stand between the product and the maximum: what moves numbers, and what TensorRT folds into one layer with
it. What joins several tensors (``cat``) ends the search, unlike in :mod:`.roles`."""

_PRODUCTS = ("mul", "glu")
_CONVOLUTIONS = ("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d")
_FAR = 24
"""Operations between a convolution and the product that are looked at."""


def of_product(node: Node) -> bool:
    """Whether an operation is a maximum of a product with what a convolution answered."""
    if operator_name(node) not in NAMES or (operator_name(node) == "max" and node.target is not aten.max.other):
        return False
    return any(_is_product(operand) for operand in node.all_input_nodes)


def _is_product(node: Node) -> bool:
    """Whether a value is such a product, maybe moved or bounded since."""
    todo, seen = [node], {node}
    while todo:
        current = todo.pop()
        name, factors = operator_name(current), current.all_input_nodes
        if name in _PRODUCTS and (len(factors) > 1 or name == "glu"):
            if any(map(_from_convolution, factors)):
                return True
        elif name in _PASSED or name in _PRODUCTS:  # a product with a number too
            new = [factor for factor in factors if factor not in seen]
            seen.update(new)
            todo += new
    return False


def _from_convolution(factor: Node) -> bool:
    level, seen = [factor], {factor}
    for _ in range(_FAR + 1):
        if any(operator_name(node) in _CONVOLUTIONS for node in level):
            return True
        operands = {operand for node in level if _elementwise(node) for operand in node.all_input_nodes}
        level = list(operands - seen)
        seen |= operands
    return False


def _elementwise(node: Node) -> bool:
    name = operator_name(node)
    if not name:
        return False
    pointwise = torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
    return pointwise or name in _PASSED or name == "batch_norm"


def rewritten(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """A maximum as what TensorRT keeps: a clip by numbers, or a choice of two tensors.

    The clip is hardtanh, which must stay whole up to its converter. TensorRT wants it bounded on both sides, so that an
    infinite value becomes the dtype's largest.

    Returns:
        None in float16, where TensorRT keeps it.
    """
    value: Node = args[0]
    dtype = value.meta["val"].dtype
    if not dtype.is_floating_point or dtype == torch.float16:
        return None
    name = operator_name(node)
    if name == "abs":
        negative = call(node, aten.lt.Scalar, value, 0)
        return call(node, aten.where.self, negative, call(node, aten.neg.default, value), value)
    if name in ("maximum", "max"):
        return _larger(call, node, value, args[1])
    low, high = _bounds(name, args, kwargs)
    if isinstance(low, Node) or isinstance(high, Node):
        value = value if low is None else _larger(call, node, value, low)
        return value if high is None else call(node, aten.minimum.default, value, high)
    most = torch.finfo(dtype).max
    return call(node, aten.hardtanh.default, value, -most if low is None else low, most if high is None else high)


def _larger(call: CallFunction, node: Node, one: Node, other: Node) -> Node:
    return call(node, aten.where.self, call(node, aten.gt.Tensor, one, other), one, other)


def _bounds(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    if name == "relu":
        return 0.0, None
    if name == "relu6":
        return 0.0, 6.0
    low, high = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    usual = {low: -1.0, high: 1.0} if name == "hardtanh" else {}
    given = {**usual, **dict(zip((low, high), args[1:])), **kwargs}
    return given.get(low), given.get(high)
