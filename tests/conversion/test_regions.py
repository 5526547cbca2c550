# ruff: noqa: E402
"""What ``torch.autocast`` and ``torch.enable_grad`` wrap inside a model."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import cpu_only

from .programs import dtypes_of, prepared, relative, run

TARGETS = ("7.5", "8.0", "8.6")


class Inside(nn.Module):
    """A layer in a region of its own."""

    def __init__(self, region):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.region = nn.Linear(8, 8), region

    def forward(self, x):
        with self.region():
            return self.linear(x).float() * 2


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("asked", "computes", "targets"),
    [
        (None, torch.bfloat16, TARGETS[1:]),
        (torch.float16, torch.float16, TARGETS),
        (torch.float32, torch.float32, TARGETS),
        (torch.bfloat16, torch.bfloat16, TARGETS[1:]),
    ],
)
def test_autocast(asked, computes, targets):
    model = Inside(autocast)
    _, program = prepared(model, [Input(((1, 4, 8), 8))], asked)
    assert dtypes_of(program.program, "linear") == {computes}
    # Turing has no bfloat16.
    assert cpu_only.fitting(TARGETS, program.dtypes(), named=False) == targets
    x = torch.randn(4, 8)
    assert relative(run(program.program, x)[0], model(x)) < 2e-2


def test_gradients():
    model = Inside(torch.enable_grad)
    _, program = prepared(model, [Input(((1, 4, 8), 8))], torch.float16)
    assert dtypes_of(program.program, "linear") == {torch.float16}
    x = torch.randn(4, 8)
    assert relative(run(program.program, x)[0], model(x)) < 2e-3
