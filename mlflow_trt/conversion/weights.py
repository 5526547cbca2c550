"""The weights and constants of a program, some of them in another dtype; the program's own stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputSpec


class Weights:
    """What a program holds beside its graph, to be cast one by one.

    Args:
        program: Where they come from.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.state: dict[str, Any] = dict(program.state_dict)
        self.constants: dict[str, Any] = dict(program.constants)
        self._copies: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        """By the original's id and the new dtype: weights that share memory go on sharing it."""

    def cast(self, spec: InputSpec, dtype: torch.dtype) -> None:
        """Replaces a weight by a copy of another dtype."""
        target = spec.target
        for store in (self.state, self.constants):
            if target in store and isinstance(store[target], torch.Tensor):
                original = store[target]
                key = id(original), dtype
                if key not in self._copies:
                    self._copies[key] = _narrowed(original.detach(), dtype)
                copy = self._copies[key]
                store[target] = (
                    torch.nn.Parameter(copy, requires_grad=False) if isinstance(original, torch.nn.Parameter) else copy
                )


def _narrowed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.is_floating_point() and torch.finfo(tensor.dtype).max > (limit := torch.finfo(dtype).max):
        # Infinite values stay so: a mask that holds -inf means it.
        tensor = torch.where(tensor.isinf(), tensor, tensor.clamp(-limit, limit))
    return tensor.to(dtype)
