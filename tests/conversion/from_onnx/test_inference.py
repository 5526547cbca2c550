"""What is known of a graph's values."""

from __future__ import annotations

import numpy as np

from mlflow_trt.conversion.from_onnx.inference import inferred, sizes

from .made import model, node, value


def test_sizes_come_from_inputs_and_operators_alone():
    proto = model(
        [node("Transpose", ["x"], ["z"], perm=[1, 0]), node("Concat", ["z", "w"], ["y"], axis=1)],
        [value("x", ("batch", 4))],
        [value("y", (4, 9))],
        {"w": np.ones((4, 2), np.float32)},
    )
    proto.graph.value_info.append(value("z", (4, 7)))
    types = inferred(proto)
    assert sizes(types, "z") == [4, None]
    assert sizes(types, "y") == [4, None]
    assert sizes(types, "w") == [4, 2]
    assert sizes(types, "not there") is None
    assert proto.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value == 7


def test_a_graph_that_can_not_be_inferred_says_little():
    proto = model([node("Reshape", ["x", "x"], ["y"])])
    assert sizes(inferred(proto), "x") == [None, 4]
    assert sizes(inferred(proto), "y") is None
