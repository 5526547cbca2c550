# ruff: noqa: E402
"""Whether a program holds for the sizes that an engine is to accept, by what the export says of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch.export import Dim

from mlflow_trt import Input
from mlflow_trt.errors import ConversionError

from .models import Cnn, Function, Two
from .programs import exported


def test_sizes_that_must_be_equal_and_are_not():
    with pytest.raises(ConversionError, match=r"trace the model|does not hold"):
        exported(Two(torch.add), [Input(((1, 2, 8), 3)), Input(((1, 2, 4), 3))])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.view(2, int(x.shape[0]) // 2 * 3), "fixed to 4"),
        (lambda x: x + torch.ones(4, 3), "fixed to 4"),
        (lambda x: x * 2 if x.shape[0] < 6 else x, "does not hold|holds for"),
    ],
)
def test_specialised_dimensions(function, words):
    with pytest.raises(ConversionError, match=words) as caught:
        exported(Function(function), [Input(((1, 4, 8), 3))])
    assert "x" in caught.value.found
    assert caught.value.remedy


def test_dynamic_input_on_a_static_program():
    program = torch.export.export(Cnn().eval(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(ConversionError, match="Dimension 0 of the input x is fixed to 2"):
        exported(program, [Input(((1, 2, 8), 3, 8, 8))])


def test_static_input_on_a_dynamic_program():
    program = torch.export.export(Cnn().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes={"x": {0: Dim.AUTO}})
    with pytest.raises(ConversionError, match="dynamic in the exported program"):
        exported(program, [Input((2, 3, 8, 8))])


def test_range_beyond_the_programs():
    dims = {"x": {0: Dim("n", min=1, max=4)}}
    program = torch.export.export(Cnn().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dims)
    exported(program, [Input(((1, 2, 4), 3, 8, 8))])
    with pytest.raises(ConversionError, match=r"holds for .* to 4 only"):
        exported(program, [Input(((1, 2, 8), 3, 8, 8))])
