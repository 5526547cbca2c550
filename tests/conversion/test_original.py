# ruff: noqa: E402
"""The caller's module, called as they would call it, and left as it was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input

from .programs import computed

BATCH = (1, 4, 8)


class Remembering(nn.Module):
    """Keeps what it made; draws and throws away; writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.cached = None
        self.register_buffer("table", torch.zeros(3))

    def forward(self, x):
        if not torch.compiler.is_exporting():
            self.cached = torch.rand(3)
            self.table.add_(1)
            self.norm.weight = nn.Parameter(self.norm.weight.clone())
            x += 0
        return self.norm(x)


def test_the_module_is_left_as_it_was():
    module = Remembering().train()
    weight, state = module.norm.weight, torch.get_rng_state()
    computed(module, [Input(((2, 4, 8), 4))])
    assert module.training
    assert module.norm.training
    assert module.cached is None
    assert module.norm.weight is weight
    assert module.table.tolist() == [0, 0, 0]
    assert module.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_of_a_transformer():
    """PyTorch's fused path answers zeros where the mask says padding; the program, as any other path, does not."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    kwargs = {"src_key_padding_mask": Input((BATCH, (2, 6, 9)), "bool")}
    tensors = computed(encoder, [Input((BATCH, (2, 6, 9), 16))], None, kwargs)
    assert all(np.isfinite(array).all() for array in tensors.outputs.values())
    assert torch.backends.mha.get_fastpath_enabled()
