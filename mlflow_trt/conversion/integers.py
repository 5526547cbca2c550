"""Integers of 8 and 16 bits. TensorRT computes in none of them, so the network holds them as int32.

What PyTorch would wrap around (``uint8`` 200 + 100 is 44) is wrapped in int32; what only moves values, compares them or
makes floats of them needs nothing. An operation that is neither known to move values nor elementwise is refused: a
bilinear resize of ``uint8``, say, rounds in PyTorch as no int32 resize does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from .._torch import HigherOrderOperator, OpOverload, pytree
from ..errors import ConversionError
from .operators import CASTS, VIEWS, dtypes_of, operator_name

HELD: dict[torch.dtype, torch.dtype] = dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.uint16), torch.int32)
"""What the network holds instead of each."""

MOVES = (
    *VIEWS,
    *("chunk", "expand_as", "reshape_as", "rot90", "split", "split_with_sizes", "tensor_split", "unbind", "unfold"),
    *("unsafe_split", "view_as"),
    *("cat", "concat", "stack", "hstack", "vstack", "flip", "fliplr", "flipud", "roll", "repeat", "tile"),
    *("repeat_interleave", "index_select", "index", "gather", "take_along_dim", "embedding", "tril", "triu"),
    *("slice_scatter", "select_scatter", "scatter", "index_put", "index_copy", "copy"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "sort", "topk", "argsort"),
    *("max", "min", "amax", "amin", "zeros", "ones", "zeros_like", "ones_like", "new_zeros", "new_ones", "empty"),
)
"""Operators of aten whose results are values that they were given, or 0 and 1: more than views, for nothing is computed
in joining, choosing and sorting either."""

FLOATS = (
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "upsample_nearest1d"),
    *("upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
)
"""Those that are done in float32, which holds these integers exactly: TensorRT has them for no integers."""

_FILLS = ("full", "full_like", "new_full", "constant_pad_nd", "pad", "where", "masked_fill", "fill", "clamp", "arange")
_REDUCTIONS = ("sum", "prod", "cumsum", "mean", "argmax", "argmin", "any", "all", "count_nonzero")
_ELEMENTWISE = ("floor_divide", "true_divide", "scalar_tensor")
_BOUNDED = ("maximum", "minimum", "relu", "clamp_min", "clamp_max")


def held(value: Any) -> Any:
    """A dtype as the network holds it; anything else as it is."""
    return HELD.get(value, value) if isinstance(value, torch.dtype) else value


def public_dtype(dtype: torch.dtype) -> torch.dtype:
    """What callers see of a dtype: numpy has no bfloat16, TensorRT no float64, and of narrow integers uint8 alone."""
    if dtype != torch.uint8 and dtype in HELD:
        return HELD[dtype]
    return torch.float32 if dtype in (torch.bfloat16, torch.float64) else dtype


def narrow(value: Any) -> bool:
    """Whether a node's value, or one of its values, is of a dtype that the network holds as another."""
    return any(dtype in HELD for dtype in dtypes_of(value))


def wrap_limits(node: Node) -> tuple[int, int] | None:
    """Lowest and highest value, where a node's result must be wrapped to its own dtype; None where it can't leave it.

    Raises:
        ConversionError: The operator computes in a dtype that TensorRT has not, in a way that int32 does not replace.
    """
    name = operator_name(node)
    if not name:
        if isinstance(node.target, HigherOrderOperator):
            raise refused(node)
        return None
    target = node.target
    assert isinstance(target, OpOverload)
    known = (
        name in (*MOVES, *FLOATS, *CASTS, *_FILLS, *_REDUCTIONS, *_ELEMENTWISE) or torch.Tag.pointwise in target.tags
    )
    if not known or target is torch.ops.aten.view.dtype or (name == "index" and _masked_by_bytes(node)):
        raise refused(node)
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in HELD or name in (*MOVES, *FLOATS):
        return None
    low, high = limits = (torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max)
    operands = [n.meta.get("val") for n in node.all_input_nodes]
    fitting = all(_fits(dtype, low, high) for operand in operands for dtype in dtypes_of(operand))
    if name in CASTS:
        return None if fitting else limits
    if name in (*_FILLS, *_BOUNDED):
        numbers = [n for n in pytree.tree_leaves((node.args, node.kwargs)) if type(n) in (int, float)]
        return None if fitting and all(low <= n <= high for n in numbers) else limits
    return limits


def refused(node: Node) -> ConversionError:
    """The error for an operator that can't be computed in int32 instead."""
    values = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    dtypes = sorted({str(d).removeprefix("torch.") for value in values for d in dtypes_of(value) if d in HELD})
    return ConversionError(
        f"{node.name} ({node.target}) computes in {' and '.join(dtypes)}, and TensorRT has no such arithmetic.",
        "values that are made float (or int32) before they are computed with",
        "write x.float() at the start of the model",
    )


def _fits(dtype: torch.dtype, low: int, high: int) -> bool:
    if dtype == torch.bool:
        return True
    return dtype in HELD and low <= torch.iinfo(dtype).min and torch.iinfo(dtype).max <= high


def _masked_by_bytes(node: Node) -> bool:
    return any(narrow(n.meta.get("val")) for n in pytree.tree_leaves(node.args[1]) if isinstance(n, Node))
