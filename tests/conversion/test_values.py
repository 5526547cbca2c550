# ruff: noqa: E402
"""Values for inputs: the caller's own, or random ones that a model can take."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import dataclasses

import numpy as np
from torch import nn

from mlflow_trt import Input
from mlflow_trt.conversion import golden
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.program import export, flatten
from mlflow_trt.conversion.structure import computed_outputs

from .models import Cnn
from .programs import computed


def test_example_values_are_used():
    x = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8)
    assert np.array_equal(computed(Cnn(), [x]).inputs["0.opt/x"], x.numpy())


def test_integers_of_a_domain_and_of_the_caller():
    arguments = parse(nn.Embedding(500, 4), [Input((2, 3), "int64")], None)
    program = export(nn.Embedding(500, 4), arguments)
    (name, spec) = next(iter(flatten(program, arguments).items()))
    narrow = {name: dataclasses.replace(spec, domain=(7, 9))}
    outputs = computed_outputs(program, None)
    made = golden.compute(program, narrow, outputs, None).inputs["0.opt/input"]
    assert set(np.unique(made)) <= {7, 8}
    given = golden.compute(program, {name: spec}, outputs, [(torch.full((2, 3), 5),)]).inputs["0.opt/input"]
    assert (given == 5).all()
