# ruff: noqa: E402
"""The program that is converted, run in PyTorch against the original."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input

from .models import Attention, Cnn, Function, Islands, Two
from .programs import dtypes_of, prepared, relative, run


@pytest.mark.parametrize("as_program", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype, limit, as_program):
    model = Cnn().eval()
    x = torch.randn(4, 3, 8, 8)
    source = torch.export.export(model, (x,)) if as_program else model
    before = copy.deepcopy(model.state_dict())
    program, half = prepared(source, [Input((4, 3, 8, 8))], dtype)
    (actual,) = run(half.program, x)
    assert actual.dtype == torch.float32
    assert 0 < relative(actual, model(x)) < limit
    assert dtypes_of(half.program, "conv2d", "linear", "batch_norm") == {dtype}
    assert {t.dtype for t in half.program.state_dict.values() if t.is_floating_point()} == {dtype}
    assert half.kept == ()
    # Neither the caller's module nor its program has changed.
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert torch.equal(run(program, x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_with_masks_norms_and_positions(dtype):
    """Half precision throughout would be NaN (the mask), infinite (the norm) and wrong (the positions)."""
    model = Attention().eval()
    ids = torch.randint(0, 50, (3, 8))
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[0, 3:] = 0
    _, half = prepared(model, [Input((3, 8), "int64"), Input((3, 8), "int64")], dtype)
    (actual,) = run(half.program, ids, mask)
    assert relative(actual, model(ids, mask)) < (5e-3 if dtype == torch.float16 else 4e-2)
    assert dtypes_of(half.program, "linear", "softmax") == {dtype}
    assert half.kept == ("matmul",)  # the angles


def test_numbers_beyond_half_precision():
    model = Function(lambda x: (x * 2).masked_fill(x > 0, torch.finfo(torch.float32).min).softmax(-1))
    x = torch.randn(4, 6)
    _, half = prepared(model, [Input((4, 6))], torch.float16)
    torch.testing.assert_close(run(half.program, x)[0], model(x), rtol=1e-2, atol=1e-3)


def test_factories_and_mixed_operands():
    def function(x):
        state = torch.zeros(x.shape[0], 4)
        return torch.cat([state, x @ torch.ones(4, 4)], 1) + torch.arange(8, dtype=torch.float32)

    _, half = prepared(Function(function), [Input((2, 4))], torch.float16)
    x = torch.randn(2, 4)
    torch.testing.assert_close(run(half.program, x)[0], function(x), rtol=1e-2, atol=1e-2)
    assert dtypes_of(half.program, "matmul") == {torch.float16}


def test_recurrent():
    torch.manual_seed(0)
    model = nn.LSTM(4, 4, batch_first=True).eval()
    x = torch.randn(2, 3, 4)
    _, half = prepared(model, [Input((2, 3, 4))], torch.float16)
    output, (hidden, cell) = model(x)
    for actual, wanted in zip(run(half.program, x), (output, hidden, cell)):
        assert actual.dtype == torch.float32
        assert relative(actual, wanted) < 5e-3


def test_explicit_float32_stays():
    _, half = prepared(Islands(), [Input((2, 4))], torch.float16)
    assert half.kept == ("matmul",)
    assert dtypes_of(half.program, "matmul") == {torch.float32}


@pytest.mark.parametrize(("own", "dtype"), [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_half_precision_model_at_another(own, dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 4).to(own)
    _, other = prepared(model, [Input((2, 4))], dtype)
    x = torch.randn(2, 4)
    assert dtypes_of(other.program, "linear") == {dtype}
    assert relative(run(other.program, x)[0], model.float()(x)) < 2e-2


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_float64_becomes_float32(dtype):
    torch.manual_seed(0)
    model = Two(lambda a, b: (a.double() @ b).sum(-1) + torch.ones(2, dtype=torch.float64))
    _, single = prepared(model, [Input((2, 4)), Input((4, 4), "float64")], dtype)
    a, b = torch.randn(2, 4), torch.randn(4, 4)
    held = {d for node in single.program.graph.nodes for d in [getattr(node.meta.get("val"), "dtype", None)]}
    assert torch.float64 not in held
    (actual,) = run(single.program, a, b)
    assert actual.dtype == torch.float32
    assert relative(actual, model(a, b.double())) < 5e-3


def test_without_a_precision_nothing_is_cast():
    _, same = prepared(Cnn(), [Input((2, 3, 8, 8))], None)
    assert not dtypes_of(same.program, "_to_copy")


def test_casts_to_another_half_precision_follow_the_one_that_is_asked_for():
    model = Function(lambda x: (x.bfloat16() @ torch.eye(4, dtype=torch.bfloat16)).float())
    _, half = prepared(model, [Input((2, 4))], torch.float16)
    assert "bfloat16" not in half.dtypes()
    _, own = prepared(model, [Input((2, 4))], None)
    assert "bfloat16" in own.dtypes()


def test_double_module_takes_what_its_input_says():
    model = nn.Linear(4, 4).double()
    _, single = prepared(model, [Input((2, 4))], None)
    assert "float64" not in single.dtypes()
    x = torch.randn(2, 4)
    assert relative(run(single.program, x)[0], model(x.double())) < 1e-5
