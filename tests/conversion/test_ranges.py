# ruff: noqa: E402
"""Where a network leaves the range of float16."""

from __future__ import annotations

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import ranges
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.interface import fed_dtype
from mlflow_trt.conversion.precision import prepare
from mlflow_trt.conversion.program import export, flatten, placeholder_values
from mlflow_trt.conversion.structure import computed_outputs

from .models import Attention, Cnn, Function


class Scaled(nn.Module):
    """Grows in its second layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh())
        self.features[1].weight.data *= factor

    def forward(self, x):
        return self.features(x)


def found(model, inputs):
    model = model.eval()
    arguments = parse(model, inputs, None)
    program = export(model, arguments)
    specs = flatten(program, arguments)
    values = placeholder_values(program)
    fed = {name: fed_dtype(spec, values[name].dtype) for name, spec in specs.items()}
    half = ranges.half_nodes(prepare(program, computed_outputs(program, None), torch.float16, fed).program)
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 2, spec.ranges[0].opt)
        if spec.dtype == torch.int64
        else random.standard_normal(spec.ranges[0].opt).astype(np.float32)
        for name, spec in specs.items()
    }
    return ranges.beyond_half(program, arrays, half)


def test_overflow_names_the_first_layer():
    (excess,) = found(Scaled(1e6), [Input((2, 4))])
    assert str(excess).startswith("the layer features.1 (Linear, linear) reaches ")
    assert "65504" in str(excess)
    assert "bf16" in ranges.REMEDY


def test_underflow_names_the_first_layer():
    (excess,) = found(Function(lambda x: (x * 1e-9) * 1e9), [Input((2, 4))])
    assert "the model's own mul (mul) gives at most" in str(excess)


def test_a_product_beyond_the_range():
    (excess,) = found(Function(lambda x: (x * 1e9).tanh()), [Input((2, 4))])
    assert excess.largest > 65504


def test_masks_and_islands_of_float32_are_no_overflow():
    """An additive mask of float32's minimum; a sum of squares that the model computes in float32."""
    assert found(Attention(), [Input((2, 6), "int64")] * 2) == []
    assert found(Function(lambda x: ((x.float() * 1e6).pow(2).sum() * 0).half() + x), [Input((2, 4))]) == []


def test_a_usual_network():
    assert found(Cnn(), [Input((2, 3, 8, 8))]) == []


def test_conversion_warns(caplog):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    import mlflow_trt
    from mlflow_trt.evidence import recorded

    caplog.set_level(logging.WARNING)
    model = nn.Sequential(Scaled(1e6), nn.Linear(4, 3)).eval()
    plan = mlflow_trt.convert(model, [Input((2, 4))], precision="fp16", compute_capabilities="8.6", timeout=300)
    assert "In float16 the layer 0.features.1 (Linear, linear) reaches" in caplog.text
    assert 'precision="bf16"' in caplog.text
    # What a GPU's failed comparison begins with.
    (sentence,) = ranges.explain(plan.program, plan.manifest.interface, plan.golden)
    assert "0.features.1" in sentence
    assert recorded.explanations(None, plan.manifest, plan.golden) == []  # without its program: nothing is claimed
