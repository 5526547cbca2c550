# ruff: noqa: E402
"""Values for inputs: the caller's own, or random ones that a model can take."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import dataclasses

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import golden
from mlflow_trt.conversion.arguments import Spec, parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.roles import Role
from mlflow_trt.conversion.structure import computed_outputs
from mlflow_trt.conversion.values import fit, synthesize
from mlflow_trt.inputs import InputRange

from .models import Cnn
from .programs import computed


def test_example_values_are_used():
    x = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8)
    assert np.array_equal(computed(Cnn(), [x]).inputs["0.opt/x"], x.numpy())


def test_integers_of_a_domain_and_of_the_caller():
    arguments = parse(nn.Embedding(500, 4), [Input((2, 3), "int64")], None)
    program = export(nn.Embedding(500, 4), arguments)
    (name, spec) = next(iter(flatten(program, arguments).items()))
    narrow = {name: dataclasses.replace(spec, domain=(7, 9))}
    outputs = computed_outputs(program, None)
    made = golden.compute(program, narrow, outputs, None).inputs["0.opt/input"]
    assert set(np.unique(made)) <= {7, 8}
    given = golden.compute(program, {name: spec}, outputs, [(torch.full((2, 3), 5),)]).inputs["0.opt/input"]
    assert (given == 5).all()


def spec(dtype, **fields):
    return Spec((InputRange((1,), (1,), (1,)),), dtype, **fields)


def made(given, shape, **options):
    return synthesize(given, shape, torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    ("dtype", "domain", "expected"),
    [
        (torch.bool, None, {0, 1}),
        (torch.int64, None, {0, 1}),
        (torch.uint8, None, {0, 1}),
        (torch.int32, (3, 6), {3, 4, 5}),
        (torch.int64, (-2, 0), {-2, -1}),
        (torch.int64, (0.5, 3.0), {1, 2}),
        (torch.int64, (0, 2.5), {0, 1, 2}),
        (torch.int64, (4, 4), {4}),
    ],
)
def test_integers_are_of_their_domain(dtype, domain, expected):
    values = made(spec(dtype, domain=domain), (200,))
    assert values.dtype == dtype
    assert set(values.int().tolist()) == expected


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floats_are_normal_or_of_their_domain(dtype):
    normal, bound = made(spec(dtype), (1000,)), made(spec(dtype, domain=(2.0, 3.0)), (1000,))
    assert normal.dtype == bound.dtype == (dtype or torch.float32)
    assert abs(normal.float().mean()) < 0.1
    assert abs(normal.float().std() - 1) < 0.1
    assert 2.0 <= bound.min() <= 2.05 < 2.95 <= bound.max() <= 3.0


def test_the_same_seed_gives_the_same_values():
    assert torch.equal(made(spec(torch.float32), (5,)), made(spec(torch.float32), (5,)))


def test_real_values_come_first_and_those_of_the_call_before_the_example():
    example, source = torch.full((1, 2), 3.0), torch.full((2, 1), 7.0)
    given = spec(torch.float16, example=example)
    assert torch.equal(made(given, (2, 2)), torch.full((2, 2), 3.0).half())
    assert torch.equal(made(given, (2, 2), source=source), torch.full((2, 2), 7.0).half())
    assert made(given, (2, 2, 2)).unique().numel() > 1, "an example of another rank says nothing"
    assert made(given, (2, 2), source=torch.zeros(0, 2)).unique().numel() > 1, "nor does one without values"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize(("kind", "first"), [("mask", 1), ("padding", 0)])
def test_masks_hide_the_end_of_each_row_and_never_all_of_it(kind, first, dtype):
    mask = made(spec(dtype), (50, 9), role=Role(kind)).int()
    assert mask.dtype == torch.int32
    assert (mask[:, 0] == first).all()
    assert (mask.diff(dim=1).abs().sum(1) <= 1).all()
    assert len(set(mask.sum(1).tolist())) > 3
    whole = (mask == first).all(1)
    assert bool(whole[0]) == (dtype != torch.bool), "one row of whole length, but where both values are to be seen"


def test_masks_of_one_place_hide_nothing():
    assert made(spec(torch.int64), (4, 1), role=Role("mask")).all()
    assert not made(spec(torch.int64), (4, 1), role=Role("padding")).any()


def test_positions_count_and_stay_in_their_table():
    assert made(spec(torch.int32), (2, 5), role=Role("positions")).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert made(spec(torch.int64), (5,), role=Role("positions", 3)).tolist() == [0, 1, 2, 0, 1]


def test_indices_use_the_whole_table():
    assert set(made(spec(torch.int64), (500,), role=Role("indices", 5)).tolist()) == {0, 1, 2, 3, 4}
    assert set(made(spec(torch.int64), (500,), role=Role("indices")).tolist()) == {0, 1}


def test_fit_repeats_and_crops():
    source = torch.arange(6).view(2, 3)
    assert fit(source, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]
    assert fit(source, (2, 7)).tolist() == [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3]]
    assert fit(source, (0, 3)).shape == (0, 3)
    same = fit(source, (2, 3))
    same[0] = 9
    assert source[0].tolist() == [0, 1, 2], "what is made is nobody else's"
