"""A model that TensorRT cannot hold as a whole: the error lists what is missing.

python examples/seeds/unsupported_operators.py
"""

from __future__ import annotations

import torch
from torch import nn

import mlflow_trt


class Whitening(nn.Module):
    """Needs an eigenvalue decomposition, which TensorRT does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(x.transpose(0, 1) @ x)
        return torch.relu(x @ vectors) / values.clamp(min=1e-6).sqrt()


try:
    mlflow_trt.convert(Whitening().eval(), [mlflow_trt.Input((8, 4))])
except mlflow_trt.UnsupportedOperatorError as error:
    print(f"Unsupported: {', '.join(error.operators)}")
    print(error)
else:
    raise SystemExit("This was expected to fail.")
