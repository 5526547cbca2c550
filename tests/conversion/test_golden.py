# ruff: noqa: E402
"""What PyTorch answers at the profile points."""

from __future__ import annotations

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.errors import ConversionError, SettingError

from .models import Cnn, Function, Nested, Two
from .programs import computed

BATCH = (1, 4, 8)


def test_points_of_every_profile_and_right_answers():
    model = Cnn().eval()
    tensors = computed(model, [Input(profiles=[((1, 1, 1), 3, 8, 8), ((2, 4, 8), 3, 8, 8)])])
    points = {(profile, point): (i["x"], o["output0"]) for profile, point, i, o in tensors.points()}
    assert set(points) == {(0, "opt"), (1, "min"), (1, "between"), (1, "opt"), (1, "max")}
    for (profile, point), (x, y) in points.items():
        assert x.shape[0] == {"opt": 1 if profile == 0 else 4, "min": 2, "between": 3, "max": 8}[point]
        with torch.no_grad():
            np.testing.assert_allclose(y, model(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_the_same_every_time():
    first, second = (computed(Cnn(), [Input((2, 3, 8, 8))]) for _ in range(2))
    assert np.array_equal(first.inputs["0.opt/x"], second.inputs["0.opt/x"])


def test_golden_inputs_and_points_made_of_them():
    real = torch.full((3, 3, 8, 8), 5.0)
    tensors = computed(Cnn(), [Input(((1, 2, 8), 3, 8, 8))], [(real,), {"x": real[:1].numpy()}])
    assert {key.split("/")[0] for key in tensors.inputs} == {
        *("0.min", "0.opt", "0.max", "0.between"),
        *("0.user0", "0.user1"),
    }
    assert all((array == 5).all() for array in tensors.inputs.values())
    assert tensors.inputs["0.max/x"].shape[0] == 8


def test_several_inputs_by_argument():
    model = Nested()
    pair = {"m": Input((1, 3)), "n": Input((1, 3))}
    kwargs = {"ids": Input((2,), "int64"), "mask": Input((2, 6), "bool")}
    tensors = computed(model, [Input((2, 4)), pair], None, kwargs)
    values = {key.split("/")[1]: value for key, value in tensors.inputs.items()}
    assert set(values) == {"x", "pair_m", "pair_n", "ids", "mask"}
    assert set(np.unique(values["ids"])) <= set(range(8))  # of one_hot
    assert values["mask"].dtype == bool
    assert "0.opt/again.4" not in tensors.outputs  # a size that never changes is a constant of the manifest


def test_sizes():
    tensors = computed(Function(lambda x: (x + 1, x.shape[0])), [Input(((1, 2, 5), 4))])
    assert [tensors.outputs[f"0.{point}/output1"] for point in ("min", "opt", "max")] == [1, 2, 5]


def test_scalars_have_no_dimension():
    tensors = computed(Function(lambda x: x.sum()), [Input((2, 4))])
    assert tensors.outputs["0.opt/output0"].shape == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([(torch.zeros(9, 3, 8, 8),)], "within one optimization profile"),
        ([(torch.zeros(2), torch.zeros(2))], "holds 2"),
    ],
)
def test_golden_inputs_that_do_not_fit(given, words):
    with pytest.raises(SettingError, match=words):
        computed(Cnn(), [Input(((1, 2, 8), 3, 8, 8))], given)


def test_large_points_are_left_out(caplog):
    caplog.set_level(logging.INFO)
    tensors = computed(Cnn(), [Input(((1, 2, 800), 3, 8, 8))], limit=100_000)
    assert {key.split("/")[0] for key in tensors.inputs} == {"0.min", "0.opt"}
    assert "left out" in caplog.text


def test_half_precision_answers_are_float32():
    tensors = computed(nn.Linear(4, 4).bfloat16(), [Input((2, 4))])
    assert tensors.outputs["0.opt/output0"].dtype == np.float32


def test_model_that_fails_at_a_point():
    with pytest.raises(ConversionError, match="PyTorch itself fails at opt"):
        computed(
            Two(lambda a, b: torch.nn.functional.embedding(a, b[:1])),
            [Input((2,), "int64"), Input((4, 3))],
            [(torch.tensor([5, 5]), torch.zeros(4, 3))],
        )
