# ruff: noqa: E402
"""The sizes at which a model is tried."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input
from mlflow_trt.errors import ConversionError

from .models import Function
from .programs import computed

BATCH = (1, 4, 8)


def test_one_size_of_several_dimensions():
    """Neither min, opt nor max has a sequence of 1 in a batch of more."""
    function = Function(lambda x: x - 1 if x.shape[1] == 1 and x.shape[0] > 1 else x + 1)
    with pytest.raises(ConversionError, match=r"x \[4, 1\]"):
        computed(function, [Input((BATCH, BATCH))])


def test_multiples_that_the_model_itself_demands_are_no_reason_to_refuse():
    pairs = Function(lambda x: x.view(x.shape[0], x.shape[1] // 4, 4).sum(-1))
    tensors = computed(pairs, [Input((2, (4, 8, 16)))])
    assert tensors.inputs["0.between/x"].shape[1] % 4 == 0
