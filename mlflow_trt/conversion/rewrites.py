"""Operations that go into the network as others, where those of Torch-TensorRT would be wrong, or fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.fx import Node

from .operators import REORDERINGS, operator_name

aten = torch.ops.aten


class CallFunction(Protocol):
    """Adds an operation to the graph, told to be at the place of another."""

    def __call__(self, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node: ...


def biased_product(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    """``beta * x + alpha * (a @ b)``: PyTorch's own decomposition of baddbmm computes it in float32."""
    added, left, right = args[:3]
    product = call(node, aten.bmm.default, left, right)
    if kwargs.get("alpha", 1) != 1:
        product = call(node, aten.mul.Tensor, product, kwargs["alpha"])
    if kwargs.get("beta", 1) != 1:
        added = call(node, aten.mul.Tensor, added, kwargs["beta"])
    return call(node, aten.add.Tensor, product, added)


def biased_linear(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """``x @ y + bias`` as a linear layer: addmm, or the sum of a product that nothing else reads, and a vector.

    As a product and a sum TensorRT-RTX 1.6 can't build it at fixed sizes, where slices of it are read on (GPT-2's
    attention): Myelin takes the size of the sum for that of the bias.

    Returns:
        None where it is anything else, or of several dtypes: the operation then stays as it is.
    """
    if any(kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
        return None
    if node.target is aten.addmm.default:
        bias, x, y = args[:3]
    else:
        terms = [n for n in args[:2] if isinstance(n, Node)]
        products = [n for n in terms if n.target in (aten.mm.default, aten.matmul.default)]
        if len(terms) != 2 or len(products) != 1:
            return None
        place = args.index(products[0])
        if len(node.args[place].users) != 1:  # type: ignore[union-attr]
            return None
        (x, y), bias = products[0].args[:2], args[1 - place]
    values = [n.meta["val"] for n in (x, y, bias)]
    if not all(isinstance(value, torch.Tensor) for value in values):  # a size of the input
        return None
    if values[0].dim() < 2 or [value.dim() for value in values[1:]] != [2, 1]:
        return None
    if len({value.dtype for value in values}) > 1:  # as a sum they promote
        return None
    return call(node, aten.linear.default, x, call(node, aten.transpose.int, y, 0, 1), bias)


def affine(call: CallFunction, args: Sequence[Any]) -> tuple[Any, ...]:
    """A batch norm's arguments with a weight and a bias: Torch-TensorRT's stand-ins for these are always float32."""
    x, weight, bias, mean, variance, *rest = args
    if mean is not None and variance is not None:
        weight = call(mean, aten.ones_like.default, mean) if weight is None else weight
        bias = call(mean, aten.zeros_like.default, mean) if bias is None else bias
    return (x, weight, bias, mean, variance, *rest)


def masked_attention(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """Attention with a mask, as products and a softmax.

    TensorRT-RTX 1.4 and 1.6 compile for minutes, at the first call, what comes of their attention layer together with
    how a causal model of transformers makes its mask (GPT-2, Llama). In parts they do not. A row with all its keys
    masked answers zeros, as PyTorch's.

    Returns:
        None where there is no mask, the heads of query and key differ, or the scale has no root: attention then stays
        whole.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args)), **kwargs}
    query, key, value, mask = (given.get(name) for name in names[:4])
    assert query is not None
    width = query.meta["val"].shape[-1]
    if mask is None or given.get("is_causal") or given.get("dropout_p") or given.get("enable_gqa"):
        return None
    if type(width) is not int:
        return None
    scale = given["scale"] if given.get("scale") is not None else 1 / math.sqrt(width)
    if not isinstance(scale, int | float) or scale < 0:
        return None
    # Half of the scale on each side, as PyTorch does: a product of unscaled halves may overflow.
    scale = math.sqrt(scale)
    keys = call(node, aten.transpose.int, call(node, aten.mul.Scalar, key, scale), -2, -1)
    scores = call(node, aten.matmul.default, call(node, aten.mul.Scalar, query, scale), keys)
    lowest = torch.finfo(scores.meta["val"].dtype).min
    if mask.meta["val"].dtype == torch.bool:
        shown = mask
        scores = call(node, aten.where.self, shown, scores, _number(call, scores, lowest))
    else:
        shown = call(node, aten.ne.Scalar, mask, -math.inf)
        # float32's minimum, as masks have it, is the dtype's own here; a sum below that would be -inf, and its row NaN.
        scores = call(node, aten.clamp.default, call(node, aten.add.Tensor, scores, mask), lowest)
    weights = call(node, aten.softmax.int, scores, -1)
    weights = call(node, aten.where.self, shown, weights, _number(call, weights, 0.0))
    return _laid_out(call, node, call(node, aten.matmul.default, weights, value))


def _laid_out(call: CallFunction, node: Node, mixed: Node) -> Node:
    """Attention's answer where all heads of a position lie side by side in memory, as PyTorch's own.

    Only where that is read as a view, which it would not be otherwise (BART).
    """
    answer = node.meta["val"]
    if not _viewed(node) or answer.dim() != 4:
        return mixed
    heads, positions = answer.stride()[1:3]
    if not (type(heads) is type(positions) is int and heads < positions):
        return mixed
    beside = call(node, aten.transpose.int, mixed, 1, 2)
    beside = call(node, aten.clone.default, beside, memory_format=torch.contiguous_format)
    return call(node, aten.transpose.int, beside, 1, 2)


def _viewed(node: Node) -> bool:
    """Whether a view of a tensor is read, of another order of its dimensions too.

    No other operator that moves numbers is passed: ``view`` alone depends on how they lie in memory, and what copies
    them, or takes a part, lays them out anew.
    """
    return any(
        user.target is aten.view.default or (operator_name(user) in REORDERINGS and _viewed(user))
        for user in node.users
    )


def _number(call: CallFunction, like: Node, number: float) -> Node:
    return call(like, aten.full.default, [], number, dtype=like.meta["val"].dtype)


def wrapped(call: CallFunction, node: Node, low: int, high: int) -> Node:
    """An int32 brought into the range of a narrower integer, as PyTorch wraps around."""
    span = high - low + 1
    shifted = call(node, aten.sub.Tensor, node, low) if low else node
    times = call(node, aten.div.Tensor_mode, shifted, span, rounding_mode="floor")
    return call(node, aten.sub.Tensor, node, call(node, aten.mul.Tensor, times, span))


def joined(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """What is written into a slice, as that slice between what is before and after it.

    Torch-TensorRT makes a scatter of it, which TensorRT refuses where another dimension is dynamic.

    Returns:
        None where the slice's place is not known beforehand: the operation then stays as it is.
    """
    whole, part = args[:2]
    names = ("dim", "index") if node.target is aten.select_scatter.default else ("dim", "start", "end", "step")
    given = {**dict(zip(names, args[2:])), **kwargs}
    dim, shape = given.get("dim", 0), whole.meta["val"].shape
    size = shape[dim]
    if names[-1] == "index":
        start, end = given["index"], given["index"] + 1 if given["index"] != -1 else None
        part = call(node, aten.unsqueeze.default, part, dim if dim >= 0 else dim + len(shape))
    else:
        start, end = given.get("start") or 0, given.get("end")
    if given.get("step", 1) != 1 or not all(n is None or type(n) is int for n in (start, end)):
        return None
    if type(size) is int:
        start, end, _ = slice(start, end).indices(size)
    elif start < 0 or (end is not None and end < 0):
        return None
    if end is not None:
        end = max(start, end)  # nothing is written where it ends before it begins
    parts = [call(node, aten.slice.Tensor, whole, dim, 0, start)] if start > 0 else []
    parts.append(part)
    if end is not None and (type(size) is not int or end < size) and end < 2**62:
        parts.append(call(node, aten.slice.Tensor, whole, dim, end, 2**63 - 1))
    return call(node, aten.cat.default, parts, dim) if len(parts) > 1 else call(node, aten.clone.default, part)


def averaged(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """An average over the whole image as a mean.

    PyTorch does the same and then restates the layout of what it answers, where channels lie last (ConvNeXt, Swin);
    Torch-TensorRT has no converter of that.

    Returns:
        None for an average over parts: the operation then stays as it is.
    """
    return call(node, aten.mean.dim, args[0], [-2, -1], True) if list(args[1]) == [1, 1] else None


def restated(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """``as_strided`` that answers its operand, value for value.

    Returns:
        None where it moves or repeats values: the operation then stays as it is.
    """
    before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
    if before.dim() != after.dim() or not _same(before.storage_offset(), after.storage_offset()):
        return None
    for size, other, stride, restated in zip(before.shape, after.shape, before.stride(), after.stride()):
        if not _same(size, other) or not (_same(size, 1) or _same(stride, restated)):
            return None
    return call(node, aten.clone.default, args[0])


def _same(one: Any, other: Any) -> bool:
    """Whether two sizes are equal whatever the call, without a guard on it."""
    first, second = (getattr(getattr(n, "node", None), "expr", n) for n in (one, other))
    return bool(first == second)


def windows(call: CallFunction, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node | None:
    """Sliding windows as slices side by side: PyTorch's own are another look at the same memory (PatchTST).

    Returns:
        None where their number is not known beforehand, or large: the operation then stays as it is.
    """
    x, dim, size, step = args[:4]
    value = x.meta["val"]
    if not value.dim():
        return None
    dim %= value.dim()
    if not all(type(n) is int for n in (value.shape[dim], size, step)):
        return None
    count = (value.shape[dim] - size) // step + 1
    if min(count, size) > _MANY:
        return None
    if count <= size:  # one slice for each window
        last = call(node, aten.permute.default, x, [*(d for d in range(value.dim()) if d != dim), dim])
        parts = [call(node, aten.slice.Tensor, last, -1, i * step, i * step + size) for i in range(count)]
        return call(node, aten.stack.default, parts, dim)
    parts = [call(node, aten.slice.Tensor, x, dim, i, i + step * (count - 1) + 1, step) for i in range(size)]
    return call(node, aten.stack.default, parts, -1)


_MANY = 64
