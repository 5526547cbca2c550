"""Values for inputs: the caller's own where there are some, else random ones from a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .arguments import Spec

if TYPE_CHECKING:
    from .roles import Role


def synthesize(
    spec: Spec,
    shape: Sequence[int],
    generator: torch.Generator,
    source: torch.Tensor | None = None,
    role: Role | None = None,
) -> torch.Tensor:
    """Makes a tensor on the CPU.

    Args:
        spec: dtype and domain; a dtype of None counts as float32.
        shape: Its sizes.
        generator: Where random values come from.
        source: Real values, tiled and cropped to the shape; default: the spec's example.
        role: What its integers are for, where that is known.
    """
    dtype = spec.dtype or torch.float32
    source = source if source is not None else spec.example
    if source is not None and source.dim() == len(shape) and (source.numel() or 0 in shape):
        return fit(source.detach().cpu(), shape).to(dtype)
    if role is not None:
        return _of_role(role, shape, dtype, generator).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    if not dtype.is_floating_point:
        # Torch-TensorRT's own domain for inputs: as indices, 0 and 1 fit nearly every table.
        low, high = spec.domain or (0, 2)
        first = math.ceil(low)
        return torch.randint(first, max(first + 1, math.ceil(high)), tuple(shape), generator=generator).to(dtype)
    if spec.domain is not None:
        low, high = spec.domain
        return (torch.rand(tuple(shape), generator=generator) * (high - low) + low).to(dtype)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


def _of_role(role: Role, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if role.kind == "indices":
        return torch.randint(0, role.rows or 2, tuple(shape), generator=generator)
    places = torch.arange(shape[-1]).expand(tuple(shape))
    if role.kind == "positions":
        return places % role.rows if role.rows else places
    # Lengths differ from row to row. Where there is room, each row has both values: what a boolean means is the model's
    # to say, and no row may be masked entirely.
    lengths = torch.randint(1, max(2, shape[-1]), (*shape[:-1], 1), generator=generator)
    if dtype != torch.bool and len(shape) > 1 and shape[0] > 1:
        lengths[0] = shape[-1]
    return places >= lengths if role.kind == "padding" else places < lengths


def fit(source: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Repeats and crops a tensor to a shape of equal rank."""
    for dim, size in enumerate(shape):
        if source.shape[dim] < size:
            repeats = [1] * source.dim()
            repeats[dim] = -(-size // source.shape[dim])
            source = source.repeat(repeats)
        source = source.narrow(dim, 0, size)
    return source.clone()
