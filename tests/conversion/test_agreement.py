# ruff: noqa: E402
"""Whether an exported program answers as its module does, and what is said where it does not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import golden
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.structure import computed_outputs
from mlflow_trt.errors import ConversionError

from .models import Function
from .programs import computed

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
