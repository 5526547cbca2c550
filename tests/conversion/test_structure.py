# ruff: noqa: E402
"""Which outputs are computed, their names, and how arguments and results nest in the manifest."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input
from mlflow_trt.conversion import structure
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.program import export
from mlflow_trt.errors import ConversionError, SettingError
from mlflow_trt.plan.manifest import Branch, ConstantLeaf, InputLeaf, TensorLeaf

from .models import Function, Nested, Pair


@dataclass
class Scores:
    best: torch.Tensor
    all: torch.Tensor


torch.export.register_dataclass(Scores)


def outputs_of(function, names=None):
    program = export(Function(function), parse(Function(function), [Input((2, 3))], None))
    outputs = structure.computed_outputs(program, names)
    return [(o.name, o.positions) for o in outputs], structure.result(program, outputs)


def test_single_tensor():
    assert outputs_of(lambda x: x * 2) == ([("output0", (0,))], TensorLeaf(name="output0"))


def test_repeated_handed_through_and_constant():
    def function(x):
        y = x * 2
        return y, x, y, None, 7, "text", True, x.type_as(y).clone(), y.detach(), y + 1

    outputs, result = outputs_of(function)
    assert outputs == [("output0", (0, 2, 8)), ("output9", (9,))]
    assert result == Branch(
        kind="tuple",
        items=(
            TensorLeaf(name="output0"),
            InputLeaf(name="x"),
            TensorLeaf(name="output0"),
            ConstantLeaf(value=None),
            ConstantLeaf(value=7),
            ConstantLeaf(value="text"),
            ConstantLeaf(value=True),
            InputLeaf(name="x"),
            TensorLeaf(name="output0"),
            TensorLeaf(name="output9"),
        ),
    )


@pytest.mark.parametrize(
    ("function", "names", "kind", "keys"),
    [
        (lambda x: {"a": x + 1, "b": [x + 2, x + 3]}, ["a", "b.0", "b.1"], "dict", ("a", "b")),
        (lambda x: OrderedDict(z=x + 1, a=x + 2), ["z", "a"], "dict", ("z", "a")),
        (lambda x: Scores(x + 1, x + 2), ["best", "all"], "dict", ("best", "all")),
        (lambda x: [x + 1, x + 2], ["output0", "output1"], "list", None),
        (lambda x: torch.max(x, 1), ["values", "indices"], "namedtuple", ("values", "indices")),
    ],
)
def test_containers(function, names, kind, keys):
    outputs, result = outputs_of(function)
    assert [name for name, _ in outputs] == names
    assert (result.kind, result.keys) == (kind, keys)


def test_model_output_of_transformers():
    modeling = pytest.importorskip("transformers.modeling_outputs")
    outputs, result = outputs_of(lambda x: modeling.BaseModelOutput(last_hidden_state=x + 1))
    assert outputs == [("last_hidden_state", (0,))]
    assert (result.kind, result.keys) == ("dict", ("last_hidden_state",))


def test_own_names():
    assert outputs_of(lambda x: (x + 1, x, x + 2), ["first", "second"])[0] == [("first", (0,)), ("second", (2,))]


@pytest.mark.parametrize("names", [["one"], ["one", "one"], ["one", ""], ["a", "b", "c"]])
def test_wrong_own_names(names):
    with pytest.raises(SettingError, match="output_names"):
        outputs_of(lambda x: (x + 1, x, x + 2), names)


def test_nothing_to_compute():
    with pytest.raises(ConversionError, match="computes nothing"):
        outputs_of(lambda x: (x, 3))


def test_arguments_nest_as_the_call():
    model = Nested()
    given = parse(
        model,
        [Input((2, 4)), {"m": Input((2, 3)), "n": Input((2, 3))}],
        {"flag": None, "ids": Input((2,), "int64"), "mask": Input((2, 6), "bool")},
    )
    arguments = structure.arguments(export(model, given))
    assert arguments.kind == "tuple"
    args, kwargs = arguments.items
    assert args.items[0] == TensorLeaf(name="x")
    assert args.items[1].keys == ("m", "n")
    assert kwargs.keys == ("flag", "ids", "mask")
    assert kwargs.items[0] == ConstantLeaf(value=None)
    assert kwargs.items[1] == TensorLeaf(name="ids")


@pytest.mark.parametrize("function", [lambda x: torch.complex(x, x), lambda x: x.to(torch.float8_e4m3fn)])
def test_outputs_that_no_engine_has(function):
    with pytest.raises(ConversionError, match=r"complex64|float8") as caught:
        outputs_of(lambda x: (x + 1, function(x)))
    assert caught.value.remedy


def test_copy_that_is_written_to_is_computed():
    """It was taken for its input, handed through as it was."""

    def function(x):
        y = x.clone()
        y[:, 1:2] = 0
        z = x * 2
        before = z.clone()
        z[0] = 0
        return y, before, z

    outputs, result = outputs_of(function)
    assert [positions for _, positions in outputs] == [(0,), (1,), (2,)]
    assert [type(item) for item in result.items] == [TensorLeaf] * 3


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (lambda x: torch.topk(x, 2), (0, 0)),
        (lambda x: Pair(x + 1, {"k": [x + 2]}), (0, {"k": [0]})),
        (lambda x: [Scores(x + 1, x + 2), x + 3], [{"best": 0, "all": 0}, 0]),
    ],
)
def test_a_program_with_containers_of_its_own_is_saved_with_plain_ones(function, spec, tmp_path):
    program = export(Function(function), parse(Function(function), [Input((2, 3))], None))
    torch.export.save(structure.portable(program), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    x = torch.randn(2, 3)
    answer = loaded.module()(x)
    assert torch.utils._pytree.tree_map(lambda _: 0, answer) == spec
    expected = torch.utils._pytree.tree_leaves(program.module()(x))
    assert all(torch.equal(a, b) for a, b in zip(torch.utils._pytree.tree_leaves(answer), expected))


def test_a_plain_program_is_saved_as_it_is():
    program = export(Function(lambda x: {"a": x + 1}), parse(Function(abs), [Input((2, 3))], None))
    assert structure.portable(program) is program
