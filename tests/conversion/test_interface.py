# ruff: noqa: E402
"""How callers see an engine: names that are told apart, dtypes that they have, shapes with names."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")


from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import dimensions, interface
from mlflow_trt.conversion.arguments import Spec
from mlflow_trt.conversion.structure import Output, computed_outputs
from mlflow_trt.inputs import InputRange
from mlflow_trt.plan.manifest import ShapeRange

from .models import Function
from .programs import exported


def spec(dtype=None, *ranges):
    return Spec(ranges or (InputRange((1,), (1,), (1,)),), dtype)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (["x"], ["y", "z"], ("y", "z")),
        (["x"], ["x", "y"], ("x.out", "y")),
        (["x", "x.out"], ["x"], ("x.out.out",)),
        (["x"], ["x.out", "x"], ("x.out", "x.out.out")),
        ([], [], ()),
    ],
)
def test_no_binding_has_the_name_of_another(inputs, outputs, expected):
    given = [Output(name=name, positions=(place,), node="node") for place, name in enumerate(outputs)]
    assert interface.bindings(dict.fromkeys(inputs, spec()), given) == expected


@pytest.mark.parametrize(
    ("said", "own", "fed"),
    [
        (None, torch.float32, "float32"),
        (None, torch.float16, "float16"),
        (None, torch.bfloat16, "float32"),  # numpy has none
        (None, torch.float64, "float32"),  # TensorRT has none
        (torch.float32, torch.float16, "float32"),
        (None, torch.uint8, "uint8"),
        (None, torch.int8, "int32"),
        (None, torch.int16, "int32"),
        (None, torch.int64, "int64"),
        (None, torch.bool, "bool"),
    ],
)
def test_dtypes_as_callers_have_them(said, own, fed):
    assert interface.plain(interface.fed_dtype(spec(said), own)) == fed


def test_an_input_of_one_range_has_it_in_every_profile():
    many = spec(None, InputRange((1, 3), (1, 3), (1, 3)), InputRange((2, 3), (4, 3), (8, 3)))
    one = spec(None, InputRange((5,), (5,), (5,)))

    first, second = interface.profiles({"x": many, "y": one})

    assert first["x"] == ShapeRange(min=(1, 3), opt=(1, 3), max=(1, 3))
    assert second["x"] == ShapeRange(min=(2, 3), opt=(4, 3), max=(8, 3))
    assert first["y"] == second["y"] == ShapeRange(min=(5,), opt=(5,), max=(5,))
    assert interface.profiles({}) == ({},)


def test_an_engine_is_described_by_what_was_built_of_it():
    model = nn.Sequential(Function(lambda x: {"x": x.bfloat16() * 2, "n": x.shape[0], "mask": x > 0}))
    program, specs = exported(model, [Input(((1, 4, 8), 3))])
    outputs = computed_outputs(program, None)
    names = interface.bindings(specs, outputs)
    (x,) = specs

    described = interface.describe(
        *(program, specs, outputs, names, [("n", "int32", []), ("mask", "bool", [-1, 3])]),
        dimensions.symbols(program, specs),
    )

    assert [(t.name, t.binding, t.dtype, t.binding_dtype, t.shape) for t in described.inputs] == [
        (x, x, "float32", "float32", ("batch", 3))
    ]
    assert {t.name: (t.dtype, t.binding_dtype, t.shape) for t in described.outputs} == {
        "x": ("float32", "float32", ("batch", 3)),
        "n": ("int64", "int32", ()),
        "mask": ("bool", "bool", ("batch", 3)),
    }
