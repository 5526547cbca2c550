# ruff: noqa: E402
"""The caller's module, called as they would call it, and left as it was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion.original import call, undisturbed

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


def test_what_a_call_keeps_is_taken_back_though_it_fails():
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.extra = nn.Linear(2, 2)
            self.note = "left behind"
            raise ValueError("as it should")

    module = Failing()
    with pytest.raises(ValueError, match="as it should"):
        call(module, (1,), {})
    assert module.calls == 0
    assert not hasattr(module, "extra")
    assert not hasattr(module, "note")


def test_mode_and_random_numbers_are_as_before_though_it_fails():
    module = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    module[1].eval()
    state, fused = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()

    def work():
        assert not any(m.training for m in module.modules())
        assert not torch.backends.mha.get_fastpath_enabled()
        torch.rand(3)
        raise ValueError("within")

    with pytest.raises(ValueError, match="within"), undisturbed(module):
        work()
    assert [m.training for m in module.modules()] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_a_compiled_part_runs_as_it_is_written():
    ran = []

    @torch.compile
    def part(x):
        ran.append(torch.compiler.is_compiling())
        return x + 1

    class Model(nn.Module):
        def forward(self, x):
            return part(x)

    module = Model()
    with undisturbed(module):
        assert torch.equal(call(module, (torch.zeros(2),), {}), torch.ones(2))
    assert ran == [False]
