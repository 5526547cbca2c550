"""A graph without its large weights, and with them again."""

from __future__ import annotations

import numpy as np
import onnx

from mlflow_trt.conversion.from_onnx.skeleton import filled, skeleton

from .made import answers, model, node, rows, value


def large():
    weights = {"w": rows(4, 512), "v": rows(4, 512), "b": rows(512)}
    nodes = [node("MatMul", ["x", "w"], ["z"]), node("MatMul", ["x", "v"], ["q"]), node("Add", ["z", "b"], ["y"])]
    proto = model(nodes, outputs=[value("y", (None, 512)), value("q", (None, 512))], weights=weights)
    proto.training_info.add()
    return proto


def test_large_weights_are_inputs_in_it():
    proto = large()
    before = proto.SerializeToString()
    made = skeleton(proto)
    assert [v.name for v in made.graph.input] == ["x", "w", "v"]
    assert [t.name for t in made.graph.initializer] == ["b"]
    assert not made.training_info
    assert len(made.SerializeToString()) < 4000
    onnx.checker.check_model(made, full_check=True)
    assert proto.SerializeToString() == before


def test_they_come_back_where_they_are_still_read():
    proto = large()
    made = skeleton(proto)
    del made.graph.node[1], made.graph.output[1]
    made = filled(made, proto)
    assert [v.name for v in made.graph.input] == ["x"]
    assert sorted(t.name for t in made.graph.initializer) == ["b", "w"]
    x = rows(2, 4)
    np.testing.assert_array_equal(answers(made, x=x)["y"], answers(proto, x=x)["y"])


def test_weights_that_are_inputs_too_stay_so():
    proto = large()
    proto.graph.input.append(value("w", (4, 512)))
    made = filled(skeleton(proto), proto)
    assert [v.name for v in made.graph.input] == ["x", "w"]
    assert sorted(t.name for t in made.graph.initializer) == ["b", "v", "w"]
