"""Ifs that always go one way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mlflow_trt.conversion.from_onnx.branches import decided
from mlflow_trt.conversion.from_onnx.model import fixed, read
from mlflow_trt.conversion.from_onnx.plain import plain
from mlflow_trt.errors import ConversionError

from .made import BOOL, answers, built, model, node, operators, rows, value


def branch(*nodes, **weights):
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(list(nodes), "branch", [], [value(nodes[-1].output[0], None)], tensors)


def squeezing(shape, times=1):
    """What torch.jit's exporter writes for x.squeeze(1) where it has no size of the dimension; names return."""
    nodes = []
    for i in range(times):
        x, y = f"x{i or ''}", f"x{i + 1}" if i + 1 < times else "y"
        squeezed = branch(node("Squeeze", [x, "axes"], ["out"]), axes=np.array([1]))
        kept = branch(node("Identity", [x], ["out"]))
        nodes += [node("Shape", [x], [f"s{i}"]), node("Gather", [f"s{i}", "place"], [f"d{i}"])]
        nodes += [node("Equal", [f"d{i}", "one"], [f"c{i}"])]
        nodes += [node("If", [f"c{i}"], [y], then_branch=squeezed, else_branch=kept)]
    return model(nodes, [value("x", shape)], [value("y", None)], {"place": np.array(1), "one": np.array(1)})


@pytest.mark.parametrize("shape", [("batch", 1, 4), ("batch", 3, 4)])
def test_sizes_decide(shape):
    proto = squeezing(shape)
    before = proto.SerializeToString()
    made = plain(read(proto))
    assert proto.SerializeToString() == before
    assert "If" not in operators(made.proto)
    assert "Shape" not in operators(made.proto)
    x = rows(2, *shape[1:])
    np.testing.assert_array_equal(answers(made.proto, x=x)["y"], x.squeeze(1) if shape[1] == 1 else x)
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    small, large = ((1, *shape[1:]), (4, *shape[1:]))
    ((_, _, built_shape),) = built(made.proto, x=(small, large, large))
    assert built_shape == [-1, *(n for n in shape[1:] if n != 1)]


def test_one_branch_may_decide_the_next():
    made = decided(squeezing(("batch", 1, 1, 4), times=3))
    assert [o for o in operators(made) if o in ("If", "Squeeze")] == ["Squeeze", "Squeeze"]
    x = rows(2, 1, 1, 4)
    np.testing.assert_array_equal(answers(made, x=x)["y"], x.squeeze((1, 2)))


def test_a_size_that_is_fixed_decides():
    made = read(squeezing(("batch", "n", 4)))
    assert "If" in operators(plain(made).proto)
    assert "If" not in operators(plain(fixed(made, {"x": (None, 1, None)})).proto)


def test_what_data_decides_stays():
    yes, no = branch(node("Neg", ["x"], ["out"])), branch(node("Abs", ["x"], ["out"]))
    proto = model([node("If", ["c"], ["y"], then_branch=yes, else_branch=no)], ["x", value("c", (), BOOL)])
    assert decided(proto) is proto
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    assert built(proto, x=((1, 4), (2, 4), (4, 4))) == [("y", "float32", [-1, 4])]
    with pytest.raises(ConversionError, match="equal ranks"):  # TensorRT's own words
        built(squeezing((2, "n", 4)), x=((2, 1, 4), (2, 2, 4), (2, 4, 4)))


def test_values_of_branches_are_told_apart():
    """Both Ifs name their values alike; one within reads from around, and one of its own names hides another."""
    deep = branch(node("Mul", ["mid", "w"], ["out"]), w=np.full(1, 2, np.float32))
    nested = node("If", ["c"], ["last"], then_branch=deep, else_branch=deep)
    outer = branch(node("Add", ["x", "w"], ["mid"]), nested, w=np.full(1, 3, np.float32))
    twice = helper.make_graph([node("Neg", ["x"], ["out"])], "twice", [], [value("out", None)] * 2)
    proto = model(
        [
            node("If", ["yes"], ["a", "b"], then_branch=twice, else_branch=twice),
            node("If", ["yes"], ["q"], then_branch=outer, else_branch=outer),
            node("Sum", ["a", "b", "q"], ["y"]),
        ],
        ["x", value("c", (), BOOL)],
        weights={"yes": np.array(True)},
    )
    made = decided(proto)
    onnx.checker.check_model(made)
    assert [o for o in operators(made) if o == "If"] == ["If"], "the inner one, which data decides"
    x = rows(2, 4)
    got = answers(made, x=x, c=np.array(False))["y"]
    np.testing.assert_allclose(got, -2 * x + 2 * (x + 3), rtol=1e-6, atol=1e-6)
