# ruff: noqa: E402
"""Maxima of products with a convolution's answer, which TensorRT-RTX drops."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import torch.nn.functional as F
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion.maxima import NAMES, of_product
from mlflow_trt.conversion.operators import operator_name

from .models import Gated
from .programs import prepared, run

MAXIMA = {
    "relu": torch.relu,
    "relu in place": lambda v: F.relu(v, inplace=True),
    "relu6": F.relu6,
    "relu6 in place": lambda v: F.relu6(v, inplace=True) + v,
    "hardtanh": F.hardtanh,
    "hardtanh, its bounds by name": lambda v: F.hardtanh(v, min_val=-0.5, max_val=0.25),
    "clamp": lambda v: v.clamp(-0.5, 0.25),
    "clamp by name": lambda v: v.clamp(min=0.1),
    "clamp_min": lambda v: v.clamp_min(-0.1),
    "clamp by tensors": lambda v: torch.clamp(v, min=torch.zeros(1), max=v + 0.1),
    "abs": torch.abs,
    "maximum": lambda v: torch.maximum(v, -0.5 * v),
    "max": lambda v: torch.max(v, torch.zeros(4, 1, 1)),
    "softsign": F.softsign,
    "another view": lambda v: F.relu(v.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "a cast between": lambda v: torch.relu(v.type_as(2 * v).ravel()).reshape(v.shape),
    "a minimum between": lambda v: torch.minimum(v, torch.ones(1)).clamp_min(0),
    "twice": lambda v: 0.3 - torch.relu(0.3 - torch.relu(v)),
}


def left(program):
    """Maxima of the program that TensorRT may drop; hardtanh goes into the network as a clip."""
    names = [operator_name(node) for node in program.graph.nodes if of_product(node)]
    return [name for name in names if name != "hardtanh"]


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("tail", MAXIMA.values(), ids=MAXIMA)
def test_a_maximum_becomes_a_clip_or_a_choice(tail, squeeze):
    model = Gated(tail, squeeze).eval()
    program, own = prepared(model, [Input(((1, 2, 8), 4, 6, 6))], None)
    assert any(of_product(node) for node in program.graph.nodes)
    assert not left(own.program)
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(run(own.program, x)[0], model(x))


@pytest.fixture(scope="module")
def layers(run_module):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    done = run_module("conversion.layers_of_maxima")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("converter", ["torch_tensorrt", "onnx"])
def test_what_the_network_gets(layers, converter):
    found = layers[converter]
    assert [kind for kind in found["relu6"] if kind not in ("CONSTANT", "SHUFFLE")] == ["CLIP"]
    for name in ("abs", "max"):
        assert "SELECT" in found[name]
        assert not {"ABS", "MAX", "RELU"} & set(found[name])


def test_what_is_no_number_stays_so():
    model = Gated(lambda v: torch.cat([torch.relu(v), v.clamp(-1, 1), v.abs()])).eval()
    _, own = prepared(model, [Input((2, 4, 6, 6))], None)
    x = torch.randn(2, 4, 6, 6)
    x[0, 0, 0, 0] = math.nan
    torch.testing.assert_close(run(own.program, x)[0], model(x), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda conv, x: torch.relu(conv(x)),
        lambda conv, x: torch.relu(x + x.mean() * conv(x)),
        lambda conv, x: torch.relu(x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
        lambda conv, x: F.max_pool2d(x * torch.sigmoid(conv(x)), 2),
        lambda conv, x: (x * torch.sigmoid(conv(x))).amax(1),
    ],
)
def test_other_maxima_stay(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return function(self.conv, x)

    program, own = prepared(Model().eval(), [Input((2, 4, 6, 6))], None)
    kept = [operator_name(n) for n in program.graph.nodes if operator_name(n) in NAMES]
    assert kept == [operator_name(n) for n in own.program.graph.nodes if operator_name(n) in NAMES]


def test_a_net_of_many_ways_is_looked_at_once():
    """Each step has two ways back: followed one by one they would be a million million."""

    def tail(v):
        for _ in range(40):
            v = torch.maximum(v, -0.5 * v)
        return v

    program, _ = prepared(Gated(tail).eval(), [Input((2, 4, 6, 6))], torch.float16)
    assert left(program).count("maximum") == 40


def test_float16_keeps_them():
    """There TensorRT does not drop them."""
    _, half = prepared(Gated(torch.relu).eval(), [Input((2, 4, 6, 6))], torch.float16)
    assert left(half.program) == ["relu"]
