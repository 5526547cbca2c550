# ruff: noqa: E402
"""Operations that Torch-TensorRT has no converter for, written as others that answer the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion.operators import operator_name

from .models import Function
from .networks import Pooled
from .programs import prepared, relative, run


def names(program):
    return {operator_name(node) for node in program.graph.nodes}


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_an_average_over_all_is_a_mean(dtype):
    torch.manual_seed(0)
    model = Pooled().eval()
    program, own = prepared(model, [Input(((1, 2, 4), 3, 32, 32))], dtype)
    assert "adaptive_avg_pool2d" in names(program)
    assert not {"adaptive_avg_pool2d", "as_strided"} & names(own.program)
    for batch in (1, 3, 4):
        x = torch.randn(batch, 3, 32, 32)
        assert relative(run(own.program, x)[0], model(x)) < (1e-6 if dtype is None else 3e-3)


def test_an_average_over_parts_stays():
    _, own = prepared(nn.AdaptiveAvgPool2d(2).eval(), [Input((1, 3, 8, 8))], None)
    assert "adaptive_avg_pool2d" in names(own.program)


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda x: x.as_strided((x.shape[0], 3, 4), (12, 4, 1)), True),
        (lambda x: x[:, :1].mean(1, keepdim=True).as_strided((x.shape[0], 1, 4), (4, 9, 1)), True),  # one has no stride
        (lambda x: x.as_strided((x.shape[0], 4, 3), (12, 1, 4)), False),
        (lambda x: x.as_strided((x.shape[0], 3, 4), (12, 0, 1)), False),
        (lambda x: x.as_strided((x.shape[0], 3, 3), (12, 4, 1), 1), False),
    ],
)
def test_a_layout_that_is_restated_is_a_copy(function, same):
    model = Function(lambda x: function(x) + 1).eval()
    _, own = prepared(model, [Input(((1, 2, 4), 3, 4))], None)
    assert ("as_strided" not in names(own.program)) == same
    x = torch.randn(3, 3, 4)
    assert torch.equal(run(own.program, x)[0], model(x))


@pytest.mark.parametrize(("dim", "size", "step"), [(-2, 4, 2), (1, 4, 3), (2, 2, 1), (-1, 5, 5), (1, 10, 1), (1, 9, 1)])
def test_windows_are_slices(dim, size, step):
    model = Function(lambda x: x.unfold(dim, size, step) * 2).eval()
    program, own = prepared(model, [Input(((1, 2, 4), 10, 5))], None)
    assert "unfold" in names(program)
    assert "unfold" not in names(own.program)
    x = torch.randn(3, 10, 5)
    assert torch.equal(run(own.program, x)[0], model(x))


def test_windows_whose_number_is_not_known_stay():
    _, own = prepared(Function(lambda x: x.unfold(1, 2, 1) * 2).eval(), [Input((2, (4, 8, 16)))], None)
    assert "unfold" in names(own.program)
