# ruff: noqa: E402
"""What is known of operators: their names, and which dtypes they need."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input
from mlflow_trt.conversion import operators

from .models import Function
from .programs import exported, prepared, run


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_needs_its_own_dtypes_keeps_them(dtype):
    """Half of a complex number, bits read as another dtype, and what PyTorch has no half kernel for."""

    def function(x):
        return torch.fft.rfft(x).abs(), (x.view(torch.int32) >> 16), torch.linalg.inv(x @ x.T + torch.eye(4))

    x = torch.randn(4, 16)
    _, program = prepared(Function(function), [Input((4, 16))], dtype)
    for actual, expected in zip(run(program.program, x), function(x)):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)


def nodes(function, *shapes):
    program, _ = exported(Function(function), [Input(shapes[0] if shapes else (4, 4))])
    return {operators.operator_name(n) or n.name: n for n in program.graph.nodes}


def test_names_are_without_overload_and_in_place_mark():
    named = nodes(lambda x: torch.relu_(x * 1).max(0)[0] @ x + x.sum(0))
    assert {"mul", "relu", "sum", "max", "matmul"} <= set(named)
    assert operators.operator_name(named["x"]) == ""  # an input
    assert operators.operator_name(named["getitem"]) == ""  # Python's own
    assert operators.operator_name(named["output"]) == ""


@pytest.mark.parametrize(
    ("function", "first"),
    [
        (lambda x: x.float(), True),
        (lambda x: x.to(torch.float32) * 2, True),
        (lambda x: x[:2].transpose(0, 1).float(), True),
        (lambda x: x.mT.ravel().contiguous().float(), True),
        (lambda x: (x * 2).float(), False),
        (lambda x: x.double(), False),
        (lambda x: x + x[0], False),
        (lambda x: x.view(torch.int16), True),  # bits of another dtype would be others
        (lambda x: torch.ones(4, 4).expand_as(x).float(), False),  # its shape alone
    ],
)
def test_what_a_program_casts_to_float32_itself(function, first):
    program = torch.export.export(Function(function), (torch.zeros(4, 4, dtype=torch.float16),))
    (x,) = [n for n in program.graph.nodes if n.name == "x"]
    assert operators.upcast_first(x) is first


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("function", "overflows"),
    [
        (lambda x: x * LOWEST, True),
        (lambda x: ((1.0 - x) * LOWEST).transpose(0, 1) + 1, True),
        (lambda x: x * 100.0, False),
        (lambda x: x.masked_fill(x > 0, -torch.inf), False),  # infinity stays what it is
        (lambda x: x * 2**20, False),  # a whole number
    ],
)
def test_what_half_precision_can_not_hold(function, overflows):
    program, _ = exported(Function(function), [Input((4, 4))])
    (output,) = [n for n in program.graph.nodes if n.op == "output"]
    assert operators.may_overflow(output.args[0][0]) is overflows


def test_a_mask_is_looked_for_in_so_many_operations():
    def far(x):
        x = x * LOWEST
        for _ in range(40):
            x = x + 1
        return x

    assert not operators.may_overflow(nodes(far)["output"].args[0][0])


def test_operands_in_any_nesting():
    x, y = nodes(lambda x: torch.cat([x, x * 2]))["cat"].args[0]
    assert operators.operands(([x, (y, 1)], {"a": x})) == [x, y, x]


def test_what_is_written_to():
    written = nodes(lambda x: (x * 1).add_(x[0]))["add"]
    assert [n.name for n in operators.written_operands(written.target, written.args)] == ["mul"]
    plain = nodes(lambda x: x + x[0])["add"]
    assert operators.written_operands(plain.target, plain.args) == []


@pytest.mark.parametrize(
    ("value", "floating"),
    [
        (torch.zeros(1), True),
        (torch.zeros(1).bfloat16(), True),
        (torch.zeros(1).to(torch.float8_e4m3fn), False),
        (torch.zeros(1).long(), False),
        (torch.zeros(1).to(torch.complex64), False),
        (1.0, False),
        (None, False),
    ],
)
def test_what_arithmetic_runs_in(value, floating):
    assert operators.is_floating(value) is floating


def test_dtypes_of_one_or_several_values():
    assert operators.dtypes_of(torch.zeros(1)) == (torch.float32,)
    assert operators.dtypes_of((torch.zeros(1), [torch.zeros(1).long(), 3])) == (torch.float32, torch.int64)
    assert operators.dtypes_of(3) == operators.dtypes_of(None) == ()


def test_double_becomes_single():
    kept = {torch.float64: torch.float32, torch.complex128: torch.complex64, torch.float16: torch.float16, 3: 3}
    assert {value: operators.no_double(value) for value in kept} == kept


@pytest.mark.parametrize("name", operators.VIEWS)
def test_views_are_operators_of_aten(name):
    assert getattr(torch.ops.aten, name).overloads()
