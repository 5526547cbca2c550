# ruff: noqa: E402
"""The sizes at which a model is tried."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input
from mlflow_trt.conversion import sizes
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.shapes import requirements
from mlflow_trt.errors import ConversionError

from .models import Cnn, Function, Two
from .programs import computed, exported

BATCH = (1, 4, 8)


def test_one_size_of_several_dimensions():
    """Neither min, opt nor max has a sequence of 1 in a batch of more."""
    function = Function(lambda x: x - 1 if x.shape[1] == 1 and x.shape[0] > 1 else x + 1)
    with pytest.raises(ConversionError, match=r"x \[4, 1\]"):
        computed(function, [Input((BATCH, BATCH))])


def test_multiples_that_the_model_itself_demands_are_no_reason_to_refuse():
    pairs = Function(lambda x: x.view(x.shape[0], x.shape[1] // 4, 4).sum(-1))
    tensors = computed(pairs, [Input((2, (4, 8, 16)))])
    assert tensors.inputs["0.between/x"].shape[1] % 4 == 0


@pytest.mark.parametrize(
    ("low", "opt", "high", "first"),
    [
        (1, 4, 8, 3),
        (1, 8, 16, 3),
        (2, 16, 64, 9),
        (1, 2, 64, 33),  # nothing between min and opt
        (1, 1, 3, 2),
        (1, 2, 3, None),
        (4, 4, 4, None),
        (1, 1, 1 << 40, 4097),  # of a range without end only so many are looked at
    ],
)
def test_the_first_size_between_is_odd_and_cheap(low, opt, high, first):
    found = list(sizes.between(low, opt, high))
    assert next(iter(found), None) == first
    assert all(low < n < high and n != opt for n in found)


def points(model, inputs):
    program, specs = exported(model, inputs)
    taken = sizes.points(program, specs, requirements(program).values())
    return taken, sizes.probes(program, specs, requirements(program).values(), taken)


def test_points_that_are_the_same_are_one():
    taken, probes = points(Cnn(), [Input((2, 3, 8, 8))])
    assert [(p.name, p.shapes) for p in taken] == [("opt", {"x": (2, 3, 8, 8)})]
    assert probes == []


def test_dimensions_that_share_a_size_change_together():
    taken, _ = points(Two(torch.add), [Input((BATCH, 3)), Input((BATCH, 3))])
    assert [p.name for p in taken] == ["opt", "min", "max", "between"]
    assert all(p.shapes["a"] == p.shapes["b"] for p in taken)


def test_every_size_is_1_alone_where_there_are_several():
    _, probes = points(Function(lambda x: x + 1), [Input((BATCH, BATCH))])
    assert [p.shapes["x"] for p in probes] == [(1, 4), (4, 1)]
    _, probes = points(Function(lambda x: x + 1), [Input((BATCH, (2, 8, 16)))])
    assert [p.shapes["x"] for p in probes] == [(1, 8)], "1 is not among the others' sizes"


def test_a_guard_is_broken_once_within_the_profile():
    def even(x):
        return x + 1 if x.shape[0] % 2 == 0 else x - 1

    program, specs = _unguarded(Function(even), [Input(((2, 4, 8), 3))])
    required = list(requirements(program).values())
    assert required
    (broken,) = sizes.probes(program, specs, required, sizes.points(program, specs, required))
    assert broken.shapes["x"][0] % 2 == 1


def _unguarded(model, inputs):
    given = parse(model, inputs, None)
    program = export(model, given)
    return program, flatten(program, given)


def test_a_profile_costs_few_probes():
    many = [Input((BATCH, BATCH, BATCH, BATCH)) for _ in range(2)]
    _, probes = points(Two(lambda a, b: (a.sum(), b.sum())), many)
    assert len(probes) == 6
