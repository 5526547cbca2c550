"""Values that the graph alone decides."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from mlflow_trt.conversion.from_onnx.constants import constants
from mlflow_trt.conversion.from_onnx.inference import inferred

from .made import INT64, model, node, value

WEIGHTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "last": np.array([-1]),
    "first": np.array([0]),
    "second": np.array([1]),
    "two": np.array([2]),
    "four": np.array(4),
    "both": np.array([0, 1]),
}


def known(*nodes, x=("batch", 4), opset=20, outputs=("y",)):
    proto = model(list(nodes), [value("x", x), value("n", (), INT64)], outputs, WEIGHTS, opset=opset)
    got = constants(proto, inferred(proto), ["y"])
    return got["y"].tolist() if "y" in got else None


SHAPE = node("Shape", ["x"], ["s"])


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node("Add", ["one", "four"], ["y"])], 5),
        ([node("Constant", [], ["y"], value=numpy_helper.from_array(np.array([True])))], [True]),
        ([node("Shape", ["x"], ["y"])], None),
        ([node("Shape", ["x"], ["y"], start=1)], [4]),
        ([node("Shape", ["x"], ["y"], start=-1, end=2)], [4]),
        ([node("Size", ["x"], ["y"])], None),
        ([SHAPE, node("Shape", ["s"], ["y"])], [2]),
        ([SHAPE, node("Gather", ["s", "one"], ["y"])], 4),
        ([SHAPE, node("Gather", ["s", "zero"], ["y"])], None),
        ([SHAPE, node("Gather", ["s", "n"], ["y"])], None),
        ([SHAPE, node("Slice", ["s", "second", "two"], ["y"])], [4]),
        ([SHAPE, node("Slice", ["s", "first", "two"], ["y"])], None),
        ([SHAPE, node("Gather", ["s", "one"], ["g"]), node("Equal", ["g", "four"], ["y"])], True),
        ([SHAPE, node("Gather", ["s", "last"], ["g"]), node("Concat", ["g", "first"], ["y"], axis=0)], [4, 0]),
        ([SHAPE, node("Concat", ["first", "s"], ["c"], axis=0), node("Gather", ["c", "both"], ["y"])], None),
        ([SHAPE, node("Mul", ["s", "four"], ["m"]), node("Gather", ["m", "one"], ["y"])], 16),
        ([SHAPE, node("ReduceProd", ["s"], ["y"])], None),
        ([SHAPE, node("Cast", ["s"], ["c"], to=1), node("Gather", ["c", "one"], ["y"])], 4.0),
        ([node("RandomUniform", [], ["y"], shape=[1])], None),
        ([node("Relu", ["x"], ["y"])], None),
        ([node("Mul", ["four", "one"], ["y"], domain="com.mine")], None),
    ],
)
def test_what_is_known(nodes, wanted):
    assert known(*nodes) == wanted


def test_sizes_that_are_fixed_are_known():
    assert known(node("Size", ["x"], ["y"]), x=(2, 4)) == 8
    assert known(SHAPE, node("ReduceProd", ["s"], ["y"], keepdims=0), x=(2, 4)) == 8


def test_what_an_operator_needs_of_its_opset_is_as_there():
    """Squeeze has its axes as an attribute up to opset 12."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "second"], ["g"]),
        node("Squeeze", ["g"], ["y"], axes=[0]),
    ]
    assert known(*nodes, opset=11) == 4


def test_choices_are_not_looked_into():
    branch = helper.make_graph([node("Identity", ["one"], ["b"])], "b", [], [value("b", (), INT64)])
    choice = node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    assert known(node("Cast", ["one"], ["yes"], to=9), choice) is None
