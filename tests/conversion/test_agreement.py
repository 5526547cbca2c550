# ruff: noqa: E402
"""Whether an exported program answers as its module does, and what is said where it does not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import agreement, golden
from mlflow_trt.conversion.agreement import Difference
from mlflow_trt.conversion.arguments import Spec, parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.sizes import Point
from mlflow_trt.conversion.structure import computed_outputs
from mlflow_trt.errors import ConversionError
from mlflow_trt.inputs import InputRange

from .models import Function
from .programs import computed, exported

BATCH = (1, 4, 8)


@pytest.mark.parametrize(
    ("function", "shape", "words"),
    [
        (lambda x: x * 2 if x.shape[0] > 1 else x + 100, (BATCH, 6), r"dimension 0 of x: other answers at 1, the same"),
        (lambda x: x * 3 if x.shape[1] == 1 else x - 1, (2, BATCH), r"dimension 1 of x: other answers at 1, the same"),
        (lambda x: x + 1 if x.shape[1] % 4 == 0 else x - 9, (2, (4, 8, 16)), r"dimension 1 of x: other answers at 5"),
        (lambda x: x * 2 if x.shape[0] > 1 else x.argmax(1)[:, None], (BATCH, 6), r"has the shape"),
        (lambda x: (x + 1, "one" if x.shape[0] == 1 else "many"), (BATCH, 6), r"output1 is 'many' in place of 'one'"),
    ],
)
def test_code_that_depends_on_a_size_is_refused_with_the_sizes(function, shape, words):
    """The export keeps one branch, and an engine would answer by it at every size."""
    with pytest.raises(ConversionError, match=words) as caught:
        computed(Function(function), [Input(shape)])
    assert "depends on a size" in caught.value.found
    assert "torch.where" in caught.value.remedy


def test_what_to_convert_for_instead():
    with pytest.raises(ConversionError, match=r"x, dimension 0: from 3 on"):
        computed(Function(lambda x: x * 2 if x.shape[0] > 1 else x + 100), [Input((BATCH, 6))])


def test_both_ways_come_to_the_same():
    """A guard that changes nothing is taken out: it would refuse right calls."""
    half = Function(lambda x: x[-(x.shape[0] // 2) :] * 2)
    arguments = parse(half, [Input(((2, 8, 64), 3))], None)
    program = export(half, arguments)
    specs = flatten(program, arguments)
    assert program._guards_code
    golden.compute(program, specs, computed_outputs(program, None), None, module=half)
    loaded = program.module()
    for rows in (2, 3, 8):
        assert torch.equal(loaded(torch.ones(rows, 3)), torch.full((rows // 2, 3), 2.0))


def test_a_given_program_that_was_exported_for_other_sizes():
    even = Function(lambda x: x + 1 if x.shape[1] % 4 == 0 else x - 9)
    arguments = parse(even, [Input((2, (4, 8, 16)))], None)
    program = export(even, arguments)
    with pytest.raises(ConversionError, match=r"x\.shape\[1\] % 4.* x \[2, 5\]"):
        golden.compute(program, flatten(program, arguments), computed_outputs(program, None), None)


def test_random_answers_are_called_random():
    with pytest.raises(ConversionError, match="The model answers the same inputs differently"):
        computed(Function(lambda x: x + torch.rand_like(x)), [Input((BATCH, 4))])
    noisy = Function(lambda x: nn.functional.dropout(x, 0.5, True) + torch.randn(()))
    with pytest.raises(ConversionError, match="The model answers the same inputs differently"):
        computed(noisy, [Input((BATCH, 4))])


def test_random_program():
    program = torch.export.export(Function(lambda x: x + torch.rand_like(x)), (torch.zeros(2, 4),))
    arguments = parse(program, None, None)
    with pytest.raises(ConversionError, match="The exported program answers the same inputs differently"):
        golden.compute(program, flatten(program, arguments), computed_outputs(program, None), None)


def test_half_precision_rounds():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).bfloat16()
    tensors = computed(layer, [Input((BATCH, 5, 16))])
    assert tensors.inputs["0.opt/src"].dtype == np.float32


def array(value):
    return np.asarray(value.numpy() if isinstance(value, torch.Tensor) else value)


ONES = torch.ones(2, 3)
TURNED = torch.view_as_complex(torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ([ONES], [ONES + 1e-5]),
        ([torch.arange(2000)], [torch.arange(2000).index_fill(0, torch.tensor([7]), 0)]),  # one of an argmax, say
        ([torch.tensor(3)], [3]),
        ([3], [torch.tensor([3])]),  # a scalar may have a dimension
        ([torch.tensor([5.0])], [torch.tensor(5.0)]),
        ([TURNED], [TURNED.clone()]),
        ([torch.tensor([torch.nan, torch.inf])], [torch.tensor([torch.nan, torch.inf])]),
        ([2.0, "text", None, True], [2.0 + 1e-5, "text", None, True]),
        ([float("nan")], [float("nan")]),
    ],
)
def test_what_agrees(module, program):
    assert agreement.differs(module, program, {}, array, 1e-3) is None


@pytest.mark.parametrize(
    ("module", "program", "words"),
    [
        ([ONES, ONES], [ONES], "1 values in place of 2"),
        ([ONES, ONES], [ONES, ONES + 0.01], "output1: rel L2 0.01"),
        ([ONES], [torch.full((2, 3), torch.nan)], "output0: is not finite on one side"),
        ([ONES], [torch.ones(3, 2)], "output0 has the shape [3, 2] in place of [2, 3]"),
        ([TURNED], [TURNED.conj().resolve_conj()], "output0: rel L2 2"),
        ([torch.arange(4)], [torch.arange(4) // 2], "output0 differs in 75% of its entries"),
        ([torch.tensor([True, False])], [torch.tensor([True, True])], "output0 differs in 50% of its entries"),
        ([1.5], [2.5], "output0 is 2.5 in place of 1.5"),
        ([1.5], [None], "output0 is None in place of 1.5"),
        (["one"], ["many"], "output0 is 'many' in place of 'one'"),
        ([None], [1.5], "output0 is 1.5 in place of None"),
    ],
)
def test_what_differs(module, program, words):
    assert agreement.differs(module, program, {}, array, 1e-3) == words


def test_a_difference_has_the_output_s_own_name():
    assert agreement.differs([1], [2], {0: "count"}, array, 1e-3) == "count is 2 in place of 1"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, 1e-3), (torch.float64, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_what_is_rounding_follows_from_the_narrowest_dtype(dtype, expected):
    program, _ = exported(Function(lambda x: x.to(dtype).float() * 2), [Input((2, 3))])
    assert agreement.rounding(program) == expected


def spec(*ranges):
    low, opt, high = zip(*ranges)
    return Spec((InputRange(low, opt, high),), torch.float32)


def at(n, length=8):
    return Point(0, "a size", {"x": (n, length)})


SPECS = {"x": spec((1, 4, 8), (2, 8, 16))}


def test_no_difference_is_no_refusal():
    agreement.refuse([], [at(1)], SPECS)


@pytest.mark.parametrize(
    ("wrong", "right", "words", "remedy"),
    [
        ([1], [4, 8], "dimension 0 of x: other answers at 1, the same at 4, 8", "x, dimension 0: from 4 on"),
        ([8], [1, 4], "dimension 0 of x: other answers at 8, the same at 1, 4", "x, dimension 0: up to 4"),
        ([4], [1, 8], "dimension 0 of x: other answers at 4, the same at 1, 8", None),
    ],
)
def test_the_dimension_that_decides_is_named(wrong, right, words, remedy):
    with pytest.raises(ConversionError) as caught:
        agreement.refuse([Difference(at(n), "rel L2 1") for n in wrong], [at(n) for n in right], SPECS)
    assert f"x [{wrong[0]}, 8] (a size): rel L2 1" in caught.value.found
    assert words in caught.value.found
    assert ("convert for sizes on one side" in caught.value.remedy) == (remedy is not None)
    assert remedy is None or remedy in caught.value.remedy


@pytest.mark.parametrize("right", [[], [1, 4]])
def test_where_no_size_decides_it_is_something_else(right):
    with pytest.raises(ConversionError) as caught:
        agreement.refuse([Difference(at(1), "rel L2 1")], [at(n) for n in right], SPECS)
    assert "depends on a size" not in caught.value.found
    assert "a condition on a value" in caught.value.remedy
