# ruff: noqa: E402
"""Export: dynamic dimensions stay dynamic, what an engine can't hold is refused, the caller's module is left alone."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.errors import ConversionError, SettingError

from .models import Cnn, Counter, Function, Nested, Two
from .programs import exported


def test_module_is_left_as_it_was():
    model = Cnn().train()
    model.features[1].eval()
    before = copy.deepcopy(model.state_dict())
    exported(model, [Input(((1, 4, 8), 3, 8, 8))])
    assert model.training
    assert not model.features[1].training
    assert model.features[0].training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_batch_of_one_is_no_constant():
    program, _ = exported(Cnn(), [Input(((1, 1, 8), 3, 8, 8))])
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), Cnn().eval()(x))


def test_equal_sizes_are_found():
    program, _ = exported(Two(torch.add), [Input(((1, 2, 8), 3)), Input(((1, 2, 8), 3))])
    sizes = {str(n.meta["val"].shape[0]) for n in program.graph.nodes if n.op == "placeholder"}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([Input((2, 3, 8))], "3 dimensions"),
        ([Input((2, 3, 8, 8), "int64")], "int64"),
        ([Input((2, 3, 8, 8)), Input((1,))], "takes 1 inputs"),
        ([3], "given as 3"),
    ],
)
def test_inputs_that_do_not_fit_a_program(inputs, words):
    program = torch.export.export(Cnn().eval(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(SettingError, match=words):
        exported(program, inputs)


def test_keyword_order_does_not_matter():
    kwargs = {"mask": Input((2, 6), "bool"), "ids": Input((2,), "int64"), "flag": True}
    program, _ = exported(Nested(), [Input((2, 4)), {"m": Input((2, 3)), "n": Input((2, 3))}], kwargs)
    turned = dict(reversed(kwargs.items()))
    _, specs = exported(program, [Input((2, 4)), {"m": Input((2, 3)), "n": Input((2, 3))}], turned)
    assert list(specs) == ["x", "pair_m", "pair_n", *[n for n in specs if n in ("mask", "ids")]]


def test_wrong_shape_says_what_export_says():
    with pytest.raises(ConversionError, match=r"torch\.export cannot trace"):
        exported(Cnn(), [Input((1, 4, 8, 8))])


def test_half_precision_module_is_fed_float32():
    program, specs = exported(nn.Linear(4, 4).bfloat16(), [Input((2, 4))])
    assert specs["input"].dtype == torch.float32
    assert program.module()(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_mutated_buffer():
    with pytest.raises(ConversionError, match="its own state: calls"):
        exported(Counter(), [Input((2,))])


def test_mutated_input():
    with pytest.raises(ConversionError, match="writes into its inputs: x"):
        exported(Function(lambda x: x.view(-1).mul_(2)), [Input((2, 2))])


def test_in_place_on_what_the_model_made_itself():
    exported(Function(lambda x: (x * 1).relu_().add_(1)), [Input((2, 2))])


@pytest.mark.parametrize(("layer", "words"), [(nn.BatchNorm1d(4), "its own state"), (nn.Dropout(), "training mode")])
def test_program_in_training_mode(layer, words):
    program = torch.export.export(layer.train(), (torch.zeros(2, 4),))
    with pytest.raises(ConversionError, match=words):
        exported(program, [Input((2, 4))])
