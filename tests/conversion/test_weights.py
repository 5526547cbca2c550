# ruff: noqa: E402
"""Weights in another dtype: shared ones stay shared, what does not fit is bounded, the program's own are left alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from mlflow_trt.conversion.weights import Weights


class Held(nn.Module):
    """A parameter, a buffer of the same memory, and a constant."""

    def __init__(self, values) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))
        self.register_buffer("tied", self.weight.detach())
        self.constant = torch.tensor(values) * 2

    def forward(self, x):
        return x * self.weight + self.tied + self.constant


def weights(values=(1.0, 2.0)):
    program = torch.export.export(Held(values).eval(), (torch.zeros(len(values)),))
    return program, Weights(program)


def spec(target):
    return InputSpec(InputKind.PARAMETER, TensorArgument(name="p"), target, persistent=None)


def test_a_copy_of_each_kind_and_the_program_keeps_its_own():
    program, cast = weights()
    for target in ("weight", "constant"):
        cast.cast(spec(target), torch.float16)
    assert cast.state["weight"].dtype == cast.constants["constant"].dtype == torch.float16
    assert isinstance(cast.state["weight"], nn.Parameter)
    assert not cast.state["weight"].requires_grad
    assert cast.constants["constant"].tolist() == [2.0, 4.0]
    assert program.state_dict["weight"].dtype == program.constants["constant"].dtype == torch.float32


def test_another_target_changes_nothing():
    _, cast = weights()
    before = dict(cast.state), dict(cast.constants)
    cast.cast(spec("nobody"), torch.float16)
    assert (cast.state, cast.constants) == before


def test_weights_that_are_one_stay_one():
    program, cast = weights()
    cast.state["again"] = cast.state["weight"]
    cast.cast(spec("weight"), torch.float16)
    cast.cast(spec("again"), torch.float16)
    assert cast.state["again"].data_ptr() == cast.state["weight"].data_ptr()
    assert program.state_dict["weight"].dtype == torch.float32


def test_one_weight_may_be_needed_in_two_dtypes():
    """As a float64 one that the program itself casts to float32 in one place."""
    _, cast = weights()
    cast.state["again"] = cast.state["weight"]
    cast.cast(spec("weight"), torch.bfloat16)
    cast.cast(spec("again"), torch.float16)
    assert (cast.state["weight"].dtype, cast.state["again"].dtype) == (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 65504.0), (torch.bfloat16, 1e30)])
def test_what_is_beyond_the_range_is_its_limit_and_infinity_stays(dtype, most):
    _, cast = weights((1e30, -1e30, torch.inf, -torch.inf, 1e-3))
    cast.cast(spec("weight"), dtype)
    values = cast.state["weight"].double().tolist()
    assert values[:2] == pytest.approx([most, -most], rel=1e-2)
    assert values[2:4] == [torch.inf, -torch.inf]
    assert values[4] == pytest.approx(1e-3, rel=1e-2)
