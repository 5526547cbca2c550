"""Nodes that are written anew."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlflow_trt.conversion.from_onnx.writer import Writer, opset

from .made import answers, model, node, rows, value


@pytest.mark.parametrize("version", [9, 13, 18, 20])
def test_axes_are_written_as_the_opset_has_them(version):
    proto = model([node("Identity", ["x"], ["x.ReduceMax"])], outputs=[value("y", (None,))], opset=version)
    writer = Writer(proto)
    assert opset(proto) == version
    most = writer.write("ReduceMax", "x", axes=[1], keepdims=1)
    total = writer.write("ReduceSum", writer.write("Add", most, writer.constant([1.0])), axes=[1], keepdims=0)
    wide = writer.write("Unsqueeze", total, axes=[0])
    writer.write("Squeeze", wide, axes=[0], out="y")
    proto.graph.node.extend(writer.nodes)
    assert most != "x.ReduceMax"
    onnx.checker.check_model(proto, full_check=True)
    x = rows(3, 4)
    np.testing.assert_allclose(answers(proto, x=x)["y"], x.max(1) + 1)


def test_names_are_new():
    writer = Writer(model([node("Relu", ["x"], ["y"])]))
    assert [writer.new("y"), writer.new("y"), writer.new("z"), writer.new("z")] == ["y.1", "y.2", "z", "z.1"]
