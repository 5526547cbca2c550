# ruff: noqa: E402
"""What ``convert`` itself decides: what it refuses first, and what becomes of other libraries' errors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch import nn

import mlflow_trt
from mlflow_trt import Input
from mlflow_trt.errors import PrecisionError, SettingError, TrtError

from .models import Function, Islands


def convert(model, inputs, **options):
    return mlflow_trt.convert(model, inputs, **{"compute_capabilities": "8.6", "timeout": 300, **options})


def test_precision_that_the_network_does_not_have():
    with pytest.raises(PrecisionError, match=r"matrix_multiply .*: float32"):
        convert(Islands(), [Input((2, 4))], precision="fp16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimisation_level": 3}, "optimization_level"),
        ({"immutable_weights": False}, "without a GPU"),
        ({"compute_capabilities": "9.0"}, r"9\.0.*\n.*7\.5, 8\.0"),
        ({"compute_capabilities": "ampere"}, "no compute capability"),
        ({"compute_capabilities": []}, "empty"),
        ({"arg_inputs": [Input((2, 3))]}, "Both inputs and arg_inputs"),
        ({"precision": "int8"}, "unknown"),
        ({"tolerance": -1}, "tolerance"),
        ({"device": object()}, "process of its own"),
    ],
)
def test_refused_before_anything_is_built(options, words):
    with pytest.raises(SettingError, match=words):
        convert(Function(lambda x: x * 2), [Input((2, 3))], **options)


def test_what_other_libraries_raise_is_made_ours():
    with pytest.raises(TrtError, match="object"):
        convert(nn.Linear(4, 2), [Input((1, 4))], golden_inputs=[{"input": object()}])
