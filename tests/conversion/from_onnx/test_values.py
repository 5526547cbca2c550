"""Made-up inputs mean something: tokens are in the table, masks are ones and then zeros."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx")

from mlflow_trt.conversion.from_onnx import inputs, values
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.conversion.from_onnx.values import InputRole

from .networks import encoder, model, perceptron


def test_roles_are_told_from_tables_and_names():
    assert values.roles(read(encoder(40)).proto) == {
        "input_ids": InputRole("indices", 40),
        "attention_mask": InputRole("mask"),
    }
    assert values.roles(perceptron()) == {}


def test_positions_are_those_that_look_up_a_table():
    proto = model(
        [("Gather", "table position_ids", "e")],
        {"position_ids": ("INT64", [2, 6])},
        {"e": ("FLOAT", [2, 6, 3])},
        {"table": np.zeros((4, 3), np.float32)},
    )
    assert values.roles(proto) == {"position_ids": InputRole("positions", 4)}


def test_what_is_made_up_has_its_role():
    ids, mask = inputs.describe(read(encoder(40)), dims={"batch": 4, "tokens": 8})
    generator = np.random.default_rng(0)
    tokens = values.synthesize(ids, (4, 8), generator, role=InputRole("indices", 40))
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() < tokens.max() < 40
    seen = values.synthesize(mask, (4, 8), generator, role=InputRole("mask"))
    assert (np.diff(seen) <= 0).all()
    assert (seen[:, 0] == 1).all()
    assert len({tuple(row) for row in seen}) > 1
    assert values.synthesize(ids, (2, 6), generator, role=InputRole("positions", 4))[0].tolist() == [0, 1, 2, 3, 0, 1]
    (x,) = inputs.describe(read(perceptron()), dims={"batch": 2})
    noise = values.synthesize(x, (2, 8), generator)
    assert noise.dtype == np.float32
    assert noise.std() > 0.3


def test_real_values_are_repeated_and_cropped():
    assert values.fit(np.arange(6).reshape(2, 3), (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]
    (x,) = inputs.describe(read(perceptron()), [np.full((1, 8), 7, np.float32)])
    assert (values.synthesize(x, (1, 8), np.random.default_rng(0)) == 7).all()
    own = np.arange(8, dtype=np.float32)[None]
    assert (values.synthesize(x, (2, 8), np.random.default_rng(0), own) == own).all()
