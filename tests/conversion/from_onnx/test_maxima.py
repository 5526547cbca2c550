"""Maxima of products with a convolution's answer, which TensorRT-RTX drops, in graphs."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_trt.conversion.from_onnx.maxima import written_out
from mlflow_trt.conversion.from_onnx.precision import cast

from .written import answers, checked, model, network, operators, rows

GATED = """
    squeezed = ReduceMean <keepdims = 1> (x, axes)
    narrow = Conv (squeezed, down)
    positive = Relu (narrow)
    gate = Conv (positive, up)
    opened = Sigmoid (gate)
    product = Mul (x, opened)
"""
TAILS = {
    "relu": "y = Relu (product)",
    "clip": "y = Clip (product, low, high)",
    "lower bound": "y = Clip (product, low)",
    "abs": "y = Abs (product)",
    "softsign": "y = Softsign (product)",
    "maximum": "other = Mul (product, half)  y = Max (product, other)",
    "of several": "other = Mul (product, half)  y = Max (product, other, low)",
    "of one": "y = Max (product)",
    "another view": "seen = Transpose <perm = [0, 2, 3, 1]> (product)  y = Relu (seen)",
    "bounded before": "less = Min (product, high)  y = Relu (less)",
    "a scaled product": "scaled = Mul (product, half)  y = Relu (scaled)",
    "bound by a tensor": "lowest = ReduceMin <keepdims = 0> (x)  y = Clip (product, lowest, high)",
    "twice": "once = Relu (product)  less = Sub (high, once)  y = Relu (less)",
}
SHAPES = {"another view": "N, 6, 6, 4"}


def gated(tail, opset=18, body=GATED):
    """Squeeze and excitation, and a maximum of it."""
    shape = SHAPES.get(tail, "N, 4, 6, 6")
    return model(
        f"g (float[N, 4, 6, 6] x) => (float[{shape}] y) {{ {body} {TAILS.get(tail, tail)} }}",
        opset,
        down=rows(2, 4, 1, 1),
        up=rows(4, 2, 1, 1),
        axes=np.array([2, 3]),
        low=np.float32(-0.25),
        high=np.float32(0.5),
        half=np.float32(-0.5),
    )


@pytest.mark.parametrize("tail", TAILS)
def test_a_maximum_becomes_a_clip_or_a_choice(tail, tmp_path):
    own = gated(tail)
    made = written_out(own)
    assert not {"Abs", "Softsign", "Max"} & set(operators(made))
    # That of the gate is no maximum of a product, and one of a sum TensorRT keeps.
    assert operators(made).count("Relu") == (2 if tail == "twice" else 1)
    checked(made)
    x = 3 * rows(2, 4, 6, 6)
    tolerance = 1e-6 if tail == "softsign" else 0  # a division in another kernel
    np.testing.assert_allclose(answers(made, tmp_path, x=x)[0], answers(own, tmp_path, x=x)[0], rtol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tail", ["relu", "clip", "abs", "maximum"])
def test_what_the_network_gets(tail, precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    kinds = [kind for _, kind, _ in network(written_out(cast(gated(tail), precision).model), tmp_path)]
    kinds = kinds[kinds.index("PROD") + 1 :]
    assert ("CLIP" if tail in ("relu", "clip") else "SELECT") in kinds
    assert not {"RELU", "ABS", "MAX"} & set(kinds)


@pytest.mark.parametrize("tail", ["relu", "clip", "abs", "maximum"])
def test_float16_keeps_them(tail):
    half = cast(gated(tail), "fp16").model
    assert operators(written_out(half)) == operators(half)


def test_what_is_no_number_stays_so(tmp_path):
    x = rows(1, 4, 6, 6)
    x[0, 0, 0, 0] = np.nan
    for tail in ("relu", "clip", "abs", "maximum"):
        assert np.isnan(answers(written_out(gated(tail)), tmp_path, x=x)[0][0, 0, 0, 0])


@pytest.mark.parametrize("tail", ["y = Relu (product)", "y = Clip <min = -0.25, max = 0.5> (product)"])
def test_opsets_whose_clip_has_attributes(tail, tmp_path):
    body = GATED.replace("ReduceMean <keepdims = 1> (x, axes)", "ReduceMean <keepdims = 1, axes = [2, 3]> (x)")
    own = gated(tail, 10, body)
    made = written_out(own)
    x = 3 * rows(2, 4, 6, 6)
    assert operators(made).count("Clip") == 1
    np.testing.assert_array_equal(answers(made, tmp_path, x=x)[0], answers(own, tmp_path, x=x)[0])


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, square)  y = Relu (c)",
        "c = Conv (x, square)  s = Add (x, c)  y = Relu (s)",
        "m = GlobalAveragePool (x)  s = Sigmoid (m)  p = Mul (x, s)  y = Relu (p)",
        "c = Conv (x, square)  s = Sigmoid (c)  p = Mul (x, s)  y = MaxPool <kernel_shape = [1, 1]> (p)",
        "c = Conv (x, square)  s = Mul (c, number)  y = Relu (s)",
        "c = Conv (x, square)  s = Sigmoid (c)  p = Mul (x, s)  y = Clip (p, , number)",
    ],
)
def test_other_maxima_stay(body):
    own = model(
        f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {body} }}",
        square=rows(4, 4, 1, 1),
        number=np.float32(0.5),
    )
    assert operators(written_out(own)) == operators(own)


def test_a_net_of_many_ways_is_looked_at_once():
    """Each step has two ways back: followed one by one they would be a million million."""
    steps = "".join(f"m{i} = Mul (v{i}, half)  v{i + 1} = Max (v{i}, m{i})  " for i in range(40))
    own = gated(f"v0 = Identity (product)  {steps} y = Identity (v40)")
    assert "Max" not in operators(written_out(own))


def test_the_given_model_stays_as_it_is():
    own = gated("relu")
    before = own.proto.SerializeToString(deterministic=True)
    written_out(own)
    assert own.proto.SerializeToString(deterministic=True) == before
