"""What the caller says of a graph's inputs is brought together with what the graph says, or refused by name."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx")

from mlflow_trt import Input
from mlflow_trt.conversion.from_onnx import inputs
from mlflow_trt.conversion.from_onnx.model import read
from mlflow_trt.errors import SettingError

from .networks import convolutional, encoder, model, perceptron


def described(proto, *args, **kwargs):
    return inputs.describe(read(proto), *args, **kwargs)


def test_ranges_by_the_names_of_dimensions_need_no_inputs():
    ids, mask = described(encoder(), dims={"batch": (1, 2, 4), "tokens": 8})
    assert (ids.name, ids.dtype, ids.shape) == ("input_ids", "int64", ("batch", 8))
    assert mask.shape == ("batch", 8)
    assert (ids.ranges[0].min, ids.ranges[0].opt, ids.ranges[0].max) == ((1, 8), (2, 8), (4, 8))
    assert inputs.fixed_sizes((ids, mask)) == {"input_ids": (None, 8), "attention_mask": (None, 8)}
    assert inputs.profiles((ids,))[0]["input_ids"].max == (4, 8)


@pytest.mark.parametrize(
    "given",
    [
        [Input(((1, 2, 4), 8))],
        Input(((1, 2, 4), 8)),
        {"x": Input(((1, 2, 4), 8))},
        [Input(((1, 2, 4), 8), name="x")],
        [Input((("batch", 1, 2, 4), 8))],
    ],
)
def test_an_input_takes_the_graphs_own_name_for_a_dimension(given):
    (x,) = described(perceptron(), given)
    assert x.shape == ("batch", 8)
    assert described(perceptron(), None, {"x": Input(((1, 2, 4), 8))}) == (x,)


def test_an_example_fixes_the_shape_and_is_kept():
    example = np.ones((2, 8), np.float32)
    (x,) = described(perceptron(), [example])
    assert x.shape == (2, 8)
    assert x.example is not None


def test_the_callers_names_are_believed_before_the_graphs():
    (x,) = described(perceptron(), [Input((("rows", 1, 2, 4), 8))])
    assert x.shape == ("rows", 8)


def test_first_dimensions_without_names_and_of_one_range_are_one_batch():
    proto = model(
        [("Add", "a b", "c")],
        {"a": ("FLOAT", [None, 4]), "b": ("FLOAT", [None, 4])},
        {"c": ("FLOAT", [None, 4])},
    )
    one, two = described(proto, [Input(((1, 2, 4), 4))] * 2)
    assert (one.shape, two.shape) == (("batch", 4), ("batch", 4))
    one, two = described(proto, [Input(((1, 2, 4), 4)), Input(((1, 2, 8), 4))])
    assert one.shape[0] != two.shape[0]


def test_names_that_are_no_identifiers_get_others():
    proto = model([("Relu", "x", "y")], {"x": ("FLOAT", ["batch size", 4])}, {"y": ("FLOAT", ["batch size", 4])})
    (x,) = described(proto, dims={"batch size": (1, 2, 4)})
    assert x.shape == ("s0", 4)


def test_several_profiles():
    (x,) = described(perceptron(), [Input(profiles=[((1, 1, 1), 8), ((2, 4, 8), 8)])])
    assert x.shape == ("batch", 8)
    assert x.span(0, 1) == (2, 4, 8)


def test_float64_is_fed_as_float32():
    proto = model([("Relu", "x", "y")], {"x": ("DOUBLE", [2, 4])}, {"y": ("DOUBLE", [2, 4])})
    assert described(proto)[0].dtype == "float32"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"input_ids has no range for batch, tokens.*dims=\{'batch': \(1, 8, 32\)\} \(--dim batch=1:8:32\)"),
        ({"dims": {"batch": (1, 2, 4)}}, "has no range for tokens"),
        ({"dims": {"rows": 4}}, "no dynamic dimension 'rows'.*one of batch, tokens"),
        ({"dims": {"batch": (4, 2, 1), "tokens": 8}}, r"dims\['batch'\] is \(4, 2, 1\)"),
        ({"dims": {"batch": 0, "tokens": 8}}, r"dims\['batch'\] is 0"),
        ({"dims": [1]}, "dims is a list"),
        ({"inputs": [Input((1, 8))] * 3}, "3 inputs were given.*at most 2"),
        ({"inputs": {"tokens": Input((1, 8), "int64")}}, "no input 'tokens'.*input_ids, attention_mask"),
        (
            {"inputs": [Input((1, 8))], "dims": {"batch": 1, "tokens": 8}},
            "is int64 in the graph, and float32",
        ),
        ({"inputs": [Input((1, 8, 3), "int64")]}, "has 2 dimensions in the graph, and 3"),
        ({"inputs": ["x"]}, "is a str: x"),
        (
            {"inputs": [Input(((1, 2, 4), 8), "int64"), Input(((1, 2, 3), 8), "int64")]},
            "both named in the graph 'batch', and are 1:2:4 and 1:2:3",
        ),
        (
            {"inputs": [Input(((1, 2, 4), 8), "int64")], "kwarg_inputs": {"input_ids": Input((1, 8), "int64")}},
            "given twice",
        ),
        (
            {
                "inputs": [
                    Input(profiles=[(1, 8), (2, 8)], dtype="int64"),
                    Input(profiles=[(1, 8), (2, 8), (3, 8)], dtype="int64"),
                ]
            },
            "optimization profiles",
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(given, message):
    with pytest.raises(SettingError) as refused:
        described(encoder(), **given)
    assert re.search(message, str(refused.value), re.DOTALL)


def test_a_size_that_the_graph_fixes_is_not_to_be_changed():
    with pytest.raises(SettingError, match=r"Dimension 2 of the input image is always 16 in the graph"):
        described(convolutional(), [Input((1, 3, 32, 16))])
