# ruff: noqa: E402
"""Operations that go into the network as others: the answers are PyTorch's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input, convert
from mlflow_trt.conversion.operators import operator_name

from .models import Function
from .networks import Pooled
from .programs import dtypes_of, prepared, relative, run


@pytest.mark.parametrize("scaled", [False, True])
def test_a_biased_batch_product_is_written_out(scaled):
    """``nn.MultiheadAttention`` with a padding mask has one; PyTorch's own decomposition computes it in float32."""
    numbers = {"beta": 0.5, "alpha": 2.0} if scaled else {}

    class Biased(torch.nn.Module):
        def forward(self, x, y):
            return torch.baddbmm(x[:, :1], x, y, **numbers)

    model = Biased()
    x, y = torch.randn(3, 4, 6), torch.randn(3, 6, 6)
    program, half = prepared(model, [Input(((1, 3, 8), (2, 4, 8), 6)), Input(((1, 3, 8), 6, 6))], torch.float16)

    (actual,) = run(half.program, x, y)

    assert relative(actual, run(program, x, y)) < 2e-3
    decomposed = half.program.run_decompositions({torch.ops.aten.baddbmm.default: _float32_baddbmm})
    assert dtypes_of(decomposed, "bmm") == {torch.float16}


def _float32_baddbmm(added, left, right, *, beta=1, alpha=1):
    return (beta * added.float() + alpha * torch.bmm(left.float(), right.float())).to(added.dtype)


def _additive(nothing):
    return lambda mask: torch.zeros(mask.shape).masked_fill(~mask, nothing)


BIASED = {
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "mm": lambda x, w, b: torch.mm(x, w) + b,
    "@": lambda x, w, b: b + x[None] @ w,
}


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("kind", BIASED)
def test_a_product_and_a_vector_are_a_linear_layer(kind, dtype):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return BIASED[kind](x, self.w, self.b)

    x = torch.randn(3, 6)
    program, new = prepared(Biased().eval(), [Input(((1, 3, 8), 6))], dtype)

    assert dtypes_of(new.program, "linear") == {dtype or torch.float32}
    (actual,) = run(new.program, x)
    assert relative(actual, run(program, x)) < (2e-3 if dtype else 1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_product_in_half_precision_and_a_vector_in_float32_stay(dtype):
    """As under autocast: the sum is float32, and a linear layer has one dtype."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                product = x @ self.w
            return product + self.b

    x = torch.randn(3, 6)
    program, new = prepared(Mixed().eval(), [Input(((1, 3, 8), 6))], dtype)

    (actual,) = run(new.program, x)
    assert relative(actual, run(program, x)) < 2e-2


def test_other_sums_of_products_stay():
    def function(x):
        product = x @ x.T
        return (
            product + x[0, 0],
            product * 2,
            torch.add(x @ x[0], x[:, 0]),
            torch.addmm(x[0, :4], x, x.T[:, :4], beta=2),
        )

    x = torch.randn(4, 4)
    program, new = prepared(Function(function), [Input((4, 4))], None)

    assert not dtypes_of(new.program, "linear")
    for actual, expected in zip(run(new.program, x), run(program, x)):
        assert relative(actual, expected) < 1e-6


MASKS = {
    "bool": lambda mask: mask,
    "of float32's minimum": _additive(torch.finfo(torch.float32).min),
    "of infinity": _additive(-torch.inf),
    "of both dimensions": lambda mask: mask[0, 0],
}


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 0.2])
def test_attention_with_a_mask_is_taken_apart(kind, dtype, scale):
    """Keys of each row are hidden, and of one row all of them."""

    class Masked(nn.Module):
        def forward(self, query, key, value, mask):
            mask = MASKS[kind](mask)
            return nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)

    random = torch.Generator().manual_seed(1)
    tensors = [torch.randn(3, 2, 5, width, generator=random) for width in (8, 8, 6)]  # values may have another width
    mask = torch.rand(3, 1, 5, 5, generator=random) > 0.4
    mask[1, 0, 2] = False
    inputs = [*(Input(((1, 3, 8), *t.shape[1:])) for t in tensors), Input(((1, 3, 8), 1, 5, 5), "bool")]

    program, new = prepared(Masked(), inputs, dtype)

    assert not dtypes_of(new.program, "scaled_dot_product_attention")
    (actual,) = run(new.program, *tensors, mask)
    assert relative(actual, run(program, *tensors, mask)) < {None: 1e-6, torch.float16: 3e-3}.get(dtype, 3e-2)
    if kind in ("bool", "of infinity"):
        assert not actual[1, :, 2].any()


class Beside(nn.Module):
    """As BART has it: what attention answers is read as a view, with all heads of a position side by side."""

    def forward(self, x, mask):
        batch, length, _ = x.shape
        query = x.view(batch, length, 2, 32).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(query, query, query, mask)
        return mixed.transpose(1, 2).contiguous().view(batch, length, -1) + x


def test_what_a_view_reads_of_attention_with_a_mask_is_laid_out_as_before():
    random = torch.Generator().manual_seed(1)
    given = torch.randn(3, 5, 64, generator=random), torch.rand(3, 1, 5, 5, generator=random) > 0.4
    inputs = [Input(((1, 3, 8), 5, 64)), Input(((1, 3, 8), 1, 5, 5), "bool")]
    program, new = prepared(Beside(), inputs, torch.float16)
    assert relative(run(new.program, *given)[0], run(program, *given)) < 3e-3
    assert convert(Beside(), inputs).serialized


def test_a_product_and_a_size_stay():
    x = torch.randn(3, 4)
    program, new = prepared(Function(lambda x: x @ x[0:1].T + x.shape[0]), [Input(((1, 3, 8), 4))], torch.float16)
    assert relative(run(new.program, x)[0], run(program, x)) < 3e-3


def test_attention_with_a_scale_that_has_no_root_stays_whole():
    class Negative(nn.Module):
        def forward(self, query, mask):
            return nn.functional.scaled_dot_product_attention(query, query, query, mask, scale=-0.5)

    _, new = prepared(Negative(), [Input(((1, 3, 8), 2, 5, 8)), Input((5, 5), "bool")], torch.float16)
    assert dtypes_of(new.program, "scaled_dot_product_attention") == {torch.float16}


def test_attention_without_a_mask_stays_whole():
    class Whole(nn.Module):
        def forward(self, query, key, value):
            attend = nn.functional.scaled_dot_product_attention
            return attend(query, key, value) + attend(query, key, value, is_causal=True)

    _, new = prepared(Whole(), [Input(((1, 3, 8), 2, 5, 8))] * 3, torch.float16)
    assert dtypes_of(new.program, "scaled_dot_product_attention") == {torch.float16}


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_batch_norm_without_weights_has_those_of_its_own_dtype(dtype):
    torch.manual_seed(0)
    model = nn.BatchNorm2d(3, affine=False).eval()
    model.running_mean.normal_()
    _, program = prepared(model, [Input((2, 3, 4, 4))], dtype)
    (norm,) = [node for node in program.program.graph.nodes if "batch_norm" in str(node.target)]
    assert {n.meta["val"].dtype for n in norm.args[:5]} == {dtype or torch.float32}
    x = torch.randn(2, 3, 4, 4)
    assert relative(run(program.program, x)[0], model(x)) < 2e-3


@pytest.mark.parametrize("write", [lambda x: x[:, 1:3], lambda x: x[:, -1], lambda x: x[..., 2:], lambda x: x[:2, 1]])
def test_writes_into_a_part_are_joined(write):
    """As a scatter, which Torch-TensorRT makes of it, TensorRT refuses it where another dimension is dynamic."""

    def function(x):
        y = x.clone()
        write(y).mul_(3)
        return y, y.sum(1)

    _, program = prepared(Function(function), [Input(((2, 3, 4), 6, 5))], torch.float16)
    assert not any("scatter" in str(node.target) for node in program.program.graph.nodes)
    x = torch.randn(4, 6, 5)
    for actual, expected in zip(run(program.program, x), function(x)):
        torch.testing.assert_close(actual, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x[:, 4:2],  # nothing
        lambda x: x[:, 9:],
        lambda x: x[:, :0],
        lambda x: x[:, -2:],
        lambda x: x[:, 2:99],
        lambda x: x[2:1],
    ],
)
def test_a_part_that_is_empty_or_ends_beyond_the_tensor(write):
    def function(x):
        y = x.clone()
        write(y).add_(3)
        return y

    _, program = prepared(Function(function), [Input(((2, 3, 4), 6))], None)
    x = torch.randn(4, 6)
    assert torch.equal(run(program.program, x)[0], function(x))


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
