"""Nodes and weights that nothing reads."""

from __future__ import annotations

import numpy as np
from onnx import helper

from mlflow_trt.conversion.from_onnx.pruning import prune

from .made import BOOL, answers, model, node, operators, rows, value


def test_what_leads_nowhere_is_left_out():
    branch = helper.make_graph([node("Mul", ["x", "used"], ["b"])], "b", [], [value("b")])
    nodes = [
        node("Add", ["x", "unused"], ["z"]),
        node("Neg", ["z"], ["q"]),
        node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        node("TopK", ["x", "k"], ["", "places"]),
    ]
    weights = {"used": np.ones(4, np.float32), "unused": np.ones(4, np.float32), "k": np.array([2])}
    proto = model(nodes, ["x", value("c", (), BOOL)], weights=weights)
    assert prune(proto)
    assert operators(proto) == ["If"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["used"]
    np.testing.assert_array_equal(answers(proto, x=rows(2, 4), c=np.array(True))["y"], rows(2, 4))
    before = proto.SerializeToString()
    assert not prune(proto)
    assert proto.SerializeToString() == before
