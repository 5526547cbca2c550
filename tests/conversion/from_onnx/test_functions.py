"""A model's own functions, written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from mlflow_trt.conversion.from_onnx.functions import inlined
from mlflow_trt.errors import ConversionError

from .made import answers, linear, model, node, operators, rows


def with_functions(opset=20, last="Neg", of_graph=20):
    """F is Neg(G(x)), or another of G's answer, and G a LeakyRelu whose slope the caller says."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    inner = helper.make_function("mine", "G", ["a"], ["b"], [leaky], imports, ["slope"])
    outer = [node("G", ["a"], ["b"], domain="mine", slope=0.25), node(last, ["b"], ["c"])]
    nodes = [node("F", ["x"], ["z"], domain="mine"), node("F", ["z"], ["y"], domain="mine")]
    proto = model(nodes, opset=of_graph, mine=1)
    proto.functions.extend([inner, helper.make_function("mine", "F", ["a"], ["c"], outer, imports)])
    return proto


@pytest.mark.parametrize("opset", [20, 17])
def test_functions_of_functions_answer_as_before(opset):
    proto = with_functions(opset)
    made = inlined(proto)
    assert operators(made) == ["LeakyRelu", "Neg"] * 2
    assert not made.functions
    np.testing.assert_array_equal(answers(made, x=rows(3, 4))["y"], answers(with_functions(), x=rows(3, 4))["y"])


def test_without_functions_nothing_is_done():
    proto = linear()
    assert inlined(proto) is proto


def test_operators_that_mean_another_thing_in_the_graphs_opset_are_not_taken_for_it():
    """Softmax of opset 12 is one over all dimensions from its axis on."""
    proto = with_functions(12, "Softmax")
    before = proto.SerializeToString()
    with pytest.raises(ConversionError, match=r"mine.G, mine.F\): .*Type unknown"):
        inlined(proto)
    assert proto.SerializeToString() == before


def test_operators_that_the_graphs_opset_has_not():
    with pytest.raises(ConversionError, match="can't be written out"):
        inlined(with_functions(20, "Gelu", of_graph=12))
