"""What was logged of a model's inputs: shapes that need no word of the caller's, and examples that fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec

from mlflow_trt.errors import SettingError
from mlflow_trt.flavor.sources import logged_inputs
from mlflow_trt.inputs import Input


def signature(*specs):
    return ModelSignature(inputs=Schema(list(specs)))


def test_a_tensor_signature_tells_dtype_and_shape():
    found = logged_inputs.of_signature(
        signature(TensorSpec(np.dtype("float32"), (-1, 3, 8, 8), "x"), TensorSpec(np.dtype("int64"), (2,), "n"))
    )

    assert found == [("float32", (None, 3, 8, 8)), ("int64", (2,))]


@pytest.mark.parametrize(
    "other",
    [
        None,
        ModelSignature(outputs=Schema([TensorSpec(np.dtype("float32"), (1,))])),
        signature(ColSpec("double", "x")),
        signature(TensorSpec(np.dtype("object"), (-1,), "text")),
        infer_signature(pd.DataFrame({"a": [1.0]})),
    ],
)
def test_another_signature_does_not(other):
    assert logged_inputs.of_signature(other) is None


def test_static_shapes_are_inputs():
    found = logged_inputs.static([("float32", (1, 3)), ("int64", ())], "models:/m/1")

    assert found == [Input((1, 3)), Input((), "int64")]


def test_for_dynamic_ones_the_error_says_what_to_give():
    with pytest.raises(SettingError) as caught:
        logged_inputs.static([("float32", (None, 3)), ("int64", (None,))], "models:/m/1")

    assert "float32 [-1, 3]; int64 [-1]" in caught.value.found
    assert "--input 'float32[1:8:32,3]' --input 'int64[1:8:32]'" in caught.value.remedy
    assert "Input(((1, 8, 32), 3), 'float32'), mlflow_trt.Input(((1, 8, 32),), 'int64')" in caught.value.remedy


def test_what_the_error_says_can_be_given():
    from mlflow_trt.cli.parsing import parse_input

    expected = Input(((1, 8, 32), 3))
    assert parse_input(f"float32[{logged_inputs._sizes((None, 3))}]") == expected
    assert Input(eval(logged_inputs._python((None, 3)))) == expected
    assert Input(eval(logged_inputs._python((None,)))) == Input(((1, 8, 32),))


X, N = np.ones((5, 4), np.float32), np.ones((5,), np.int64)
BATCH = Input(((1, 2, 8), 4))
COUNT = Input(((1, 2, 8),), "int64")
SHARED = [Input((("n", 1, 2, 8), 4), name="x"), Input((("n", 1, 2, 8),), "int64", "n")]


@pytest.mark.parametrize(
    ("example", "inputs", "found"),
    [
        (X, [BATCH], [(X,)]),
        (X, BATCH, [(X,)]),
        (X, [Input(((1, 2, 8), 4), name="x")], [(X,)]),
        ((X, N), [BATCH, COUNT], [(X, N)]),
        ({"n": N, "x": X}, SHARED, [{"x": X, "n": N}]),
        (X, [Input(profiles=[((1, 1, 1), 4), ((2, 4, 8), 4)])], [(X,)]),
        (np.float32(3), [Input(())], [(np.float32(3),)]),
        (N > 0, [Input(((1, 2, 8),), "bool")], [(N > 0,)]),
    ],
)
def test_an_example_that_fits_is_a_golden_input(example, inputs, found):
    np.testing.assert_equal(logged_inputs.golden(example, inputs), found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "bool"])
def test_so_is_a_tensor_of_any_dtype(dtype):
    torch = pytest.importorskip("torch")
    x = torch.ones(5, 4, dtype=getattr(torch, dtype))

    assert logged_inputs.golden((x,), [BATCH]) == [(x,)]
    if x.is_floating_point():
        assert logged_inputs.golden((x / 0,), [BATCH]) is None


@pytest.mark.parametrize(
    ("example", "inputs"),
    [
        (X, [Input(((1, 2, 4), 4))]),
        (X, [Input(((1, 2, 8), 3))]),
        (X, [Input(((1, 2, 8), 4, 1))]),
        (X, [Input(profiles=[((1, 2, 4), 4), ((6, 7, 8), 4)])]),
        ((X, N), [BATCH]),
        ((X, N), [Input(((1, 2, 8), 4), name="x"), Input(((1, 2, 8),), "int64", "n")]),
        ({"x": X, "m": N}, SHARED),
        ({"x": X, "n": N[:3]}, SHARED),
        ({"x": X}, [BATCH]),
        (None, [BATCH]),
        (np.full((5, 4), np.nan, np.float32), [BATCH]),
        (np.full((5, 4), -np.inf, np.float32), [BATCH]),
        (pd.DataFrame(X), [BATCH]),
        ([[1.0] * 4] * 5, [BATCH]),
        (X, None),
        (X, []),
        (X, [X]),
    ],
)
def test_others_are_left_out(example, inputs):
    assert logged_inputs.golden(example, inputs) is None
