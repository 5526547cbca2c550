"""Loops that count."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mlflow_trt.conversion.from_onnx.loops import conditioned
from mlflow_trt.errors import ConversionError

from .made import BOOL, INT64, answers, built, model, node, rows, value


def counting(condition=""):
    body = helper.make_graph(
        [node("Add", ["a", "x"], ["sum"]), node("Identity", ["go"], ["on"])],
        "body",
        [value("i", (), INT64), value("go", (), BOOL), value("a")],
        [value("on", (), BOOL), value("sum")],
    )
    loop = node("Loop", ["n", condition, "x"], ["y"], body=body)
    return model([loop], weights={"n": np.array(3), "yes": np.array(True)})


def test_one_without_a_condition_gets_one_and_builds():
    proto = counting()
    before = proto.SerializeToString()
    made = conditioned(proto)
    assert proto.SerializeToString() == before
    np.testing.assert_array_equal(answers(made, x=rows(2, 4))["y"], answers(proto, x=rows(2, 4))["y"])
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    ranges = ((1, 4), (2, 4), (4, 4))
    with pytest.raises(ConversionError, match="not registered"):
        built(proto, x=ranges)
    assert built(made, x=ranges) == [("y", "float32", [-1, 4])]


def test_others_are_left_alone():
    proto = counting("yes")
    assert conditioned(proto) is proto
