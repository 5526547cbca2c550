"""What aten's operators do with dtypes, as far as a change of precision must know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from .._torch import OpOverload, pytree

ARITHMETIC = (
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addbmm",
    "mv",
    "einsum",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "scaled_dot_product_attention",
    "lstm",
    "gru",
)
"""Operators of aten that carry a network's arithmetic."""

NORMALIZATIONS = ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm")
PROMOTING = ("cat", "concat", "stack", "hstack", "vstack", "where", "result_type", "type_as")
COPIES = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy")
"""Operators of aten that give back the numbers of one tensor in the same shape."""

REORDERINGS = ("mT", "moveaxis", "movedim", "numpy_T", "permute", "swapaxes", "swapdims", "t", "transpose")
"""Those that put the dimensions of one tensor in another order."""

VIEWS = (
    *COPIES,
    *REORDERINGS,
    *("_unsafe_view", "diagonal", "expand", "flatten", "narrow", "ravel", "reshape", "select", "slice", "squeeze"),
    *("unflatten", "unsqueeze", "view"),
)
"""All that only move the numbers of one tensor: into another shape, or a part of them; none is new.

Not those that name the shape by a second tensor (``expand_as``), whose numbers go nowhere.
"""

CASTS = ("to", "_to_copy", "type_as")
QUANTIZERS = ("quantize_op", "dynamic_block_quantize_op")


def upcast_first(node: Node) -> bool:
    """Whether the program casts a value to float32 itself, views aside: rotary frequencies, say, need every bit."""
    for user in node.users:
        name = operator_name(user)
        if name in CASTS and torch.float32 in dtypes_of(user.meta.get("val")):
            return True
        if name in QUANTIZERS and node in user.args[1:]:
            return True  # the scale of a quantizer
        if keeps_dtypes(user) or (name in VIEWS and upcast_first(user)):
            return True
    return False


def may_overflow(node: Node) -> bool:
    """Whether a float32 value may be a mask: built from a constant beyond the range of half precision."""
    seen: set[Node] = set()
    todo = [node]
    while todo and len(seen) < 32:
        current = todo.pop()
        if current in seen or current.op != "call_function":
            continue
        seen.add(current)
        numbers = pytree.tree_leaves((current.args, current.kwargs))
        if any(type(v) is float and 6e4 < abs(v) < math.inf for v in numbers):  # infinity stays what it is
            return True
        todo += current.all_input_nodes
    return False


def operator_name(node: Node) -> str:
    """Its name in aten, without overload and in-place mark; empty for anything else."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return ""
    return str(target._schema.name).split("::")[-1].removesuffix("_") or ""


def operands(tree: Any) -> list[Node]:
    """Every node in nested arguments."""
    nodes: list[Node] = []
    torch.fx.node.map_arg(tree, lambda n: nodes.append(n) or n)  # type: ignore[func-returns-value]
    return nodes


def written_operands(target: OpOverload, args: Sequence[Any]) -> list[Node]:
    """The operands that an operation changes in place."""
    return [
        value
        for value, argument in zip(args, target._schema.arguments)
        if isinstance(value, Node) and argument.alias_info is not None and argument.alias_info.is_write
    ]


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of a floating dtype that arithmetic runs in: FP8 is only stored."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize > 1


def dtypes_of(value: Any) -> tuple[Any, ...]:
    """The dtypes of a node's value, or values."""
    return tuple(v.dtype for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor))


def keeps_dtypes(node: Node) -> bool:
    """Whether an operation's floating operands stay as the model has them: its result is of another kind in others.

    That is what reads bits, what makes complex numbers, and what another package registered: nothing is known of it,
    and kernels for half precision are rare.
    """
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    foreign = target.namespace not in ("aten", "prim", "prims") and operator_name(node) not in QUANTIZERS
    values = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    return (
        foreign
        or target is torch.ops.aten.view.dtype
        or any(isinstance(d, torch.dtype) and d.is_complex for v in values for d in dtypes_of(v))
    )


def no_double(value: Any) -> Any:
    """float64 becomes float32, and the complex number of two float64 that of two float32; all else stays."""
    if not isinstance(value, torch.dtype):
        return value
    return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(value, value)
