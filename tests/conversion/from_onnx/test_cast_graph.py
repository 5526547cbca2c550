"""A graph that is written with casts, where values have the dtype of who reads them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from mlflow_trt.conversion.from_onnx.cast_graph import CastGraph
from mlflow_trt.conversion.from_onnx.weights import array

from .written import model, rows

FLOAT, HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)


def graph():
    own = model("g (float[N, 4] x, float16[N, 4] h) => (float[N, 4] y) { y = Add (x, w) }", w=rows(4), i=np.array([1]))
    return CastGraph(own.proto, HALF, None)


def test_what_is_read_is_there_once():
    made = graph()
    assert [made.read("w", HALF), made.read("w", FLOAT), made.read("w", HALF)] == ["w", "w.fp32", "w"]
    assert [made.read("x", FLOAT), made.read("x", HALF), made.read("x", HALF)] == ["x", "x.fp16", "x.fp16"]
    assert [made.read("h", HALF), made.read("h", FLOAT)] == ["h", "h.fp32"]
    finished = graph_of(made, "x")
    assert [n.op_type for n in finished.node] == ["Cast", "Cast", "Identity"]
    assert {t.name: t.data_type for t in finished.initializer} == {"w": HALF, "w.fp32": FLOAT, "i": TensorProto.INT64}


def graph_of(made, name):
    """The graph, finished with this value for its output."""
    made.free["y"] = None
    made._brought["y", FLOAT] = made.read(name, FLOAT)
    return made.finished().graph


def test_dtypes_are_known_of_what_has_one():
    made = graph()
    assert (made.dtype("x"), made.dtype("w"), made.dtype("h"), made.dtype("nothing")) == (None, None, HALF, None)
    assert [made.is_floating(name) for name in ("x", "w", "h", "i")] == [True, True, True, False]
    assert made.holds("i")
    assert not made.holds("nothing")


def test_a_weight_that_the_model_has_not():
    made = graph()
    name = made.new_weight("w", np.array([1.0, 2.0]))
    assert name != "w"
    made.read(name, HALF)
    (tensor,) = (t for t in graph_of(made, "x").initializer if t.name == name)
    np.testing.assert_array_equal(array(tensor, None), [1, 2])
