"""Nodes, tensors and reads, wherever in a model they are."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from mlflow_trt.conversion.from_onnx import graphs

from .made import BOOL, model, node, value


def nested():
    """A choice within a function and one within a choice, each with a weight of its own."""
    weight = numpy_helper.from_array(np.ones(1, np.float32), "deep")
    deep = helper.make_graph([node("Mul", ["z", "deep"], ["a"])], "deep", [], [value("a")], [weight])
    inner = helper.make_graph(
        [node("Neg", ["x"], ["z"]), node("If", ["c"], ["b"], then_branch=deep, else_branch=deep)],
        "in",
        [],
        [value("b")],
    )
    proto = model(
        [node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, name="choice")],
        ["x", value("c", (), BOOL)],
        weights={"w": np.ones(1)},
    )
    constant = node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2), "constant"))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "sparse"), numpy_helper.from_array(np.array([1]), "places"), [4]
    )
    strewn = node("Constant", [], ["s"], sparse_value=sparse)
    proto.functions.append(
        helper.make_function("mine", "F", [], ["k"], [constant, strewn], [helper.make_opsetid("", 20)])
    )
    return proto


def test_every_node_and_tensor_is_found():
    proto = nested()
    assert [each.op_type for each in graphs.nodes(proto)] == [
        "If",
        *["Neg", "If", "Mul", "Mul"] * 2,
        "Constant",
        "Constant",
    ]
    names = [tensor.name for tensor in graphs.tensors(proto)]
    assert sorted(names) == ["constant", *["deep"] * 4, "places", "sparse", "w"]
    assert len([*graphs.graphs(proto)]) == 7


def test_what_a_node_reads_from_around_its_graphs():
    assert {*graphs.used(nested().graph.node[0])} == {"x", "c"}


def test_a_node_is_called_by_its_name_or_what_comes_out():
    assert graphs.where(node("Relu", ["x"], ["", "y"])) == "Relu at y"
    assert graphs.where(node("Relu", ["x"], ["y"], name="act", domain="mine")) == "mine.Relu at act"
