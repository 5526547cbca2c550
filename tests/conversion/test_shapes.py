# ruff: noqa: E402
"""Whether a program holds for the sizes that an engine is to accept, by what the export says of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch.export import Dim

from mlflow_trt import Input
from mlflow_trt.conversion import shapes
from mlflow_trt.errors import ConversionError

from .models import Cnn, Function, Nested, Two
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


@pytest.mark.parametrize(
    ("requirement", "sizes", "kept"),
    [
        ("x.shape[0] == y.shape[0]", {"x": (2, 3), "y": (2,)}, True),
        ("x.shape[0] == y.shape[0]", {"x": (2, 3), "y": (3,)}, False),
        ("x.shape[1] % 4 == 0", {"x": (2, 8)}, True),
        ("x.shape[1] % 4 == 0", {"x": (2, 9)}, False),
        ("max(x.shape[0], 2) >= 3", {"x": (2,)}, False),
        ("math.floor(x.shape[0] / 2) == 1", {"x": (3,)}, True),
        ("x.dtype == torch.float32", {"x": (2,)}, True),  # on something else than sizes
        ("other.shape[0] == 2", {"x": (3,)}, True),
        ("__import__('os').getpid() == 0", {"x": (3,)}, True),  # no such name there
    ],
)
def test_a_requirement_holds_or_not(requirement, sizes, kept):
    assert shapes.holds(requirement, sizes) is kept


def test_requirements_are_told_by_the_inputs_names():
    pair = {"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}
    kwargs = {"flag": True, "ids": Input(((1, 4, 8),), "int64"), "mask": Input(((1, 4, 8), 6), "bool")}
    program, _ = exported(Nested(), [Input(((1, 4, 8), 4)), pair], kwargs)

    spelled = shapes.sources(program)

    assert spelled == {
        "x": "L['x']",
        "pair_m": "L['pair']['m']",
        "pair_n": "L['pair']['n']",
        "flag": "L['flag']",
        "ids": "L['ids']",
        "mask": "L['mask']",
    }
    assert not any("L[" in text for text in shapes.requirements(program).values())


def test_a_size_that_is_fixed_is_a_number():
    program, _ = exported(Cnn(), [Input(((1, 4, 8), 3, 8, 8))])
    (sizes,) = [n.meta["val"].shape for n in program.graph.nodes if n.name == "x"]
    assert [shapes.fixed_size(size) for size in sizes] == [None, 3, 8, 8]
