"""Programs written as ONNX graphs, and what their models answer."""

from __future__ import annotations

import numpy as np
import torch

import mlflow_trt
from mlflow_trt import Input
from mlflow_trt.conversion import onnx
from mlflow_trt.conversion.job import BindingSpec, Job
from mlflow_trt.plan.files import GoldenTensors

from .programs import prepared

TARGET = "8.6"


def convert(model, inputs, **options):
    return mlflow_trt.convert(model, inputs, **{"compute_capabilities": TARGET, "timeout": 300, **options})


def written(model, inputs, dtype, folder):
    """A program as an ONNX graph in a folder, and its job."""
    inputs = [i if isinstance(i, Input) else Input(i) for i in inputs]
    _, made = prepared(model.eval(), inputs, dtype)
    specs = [
        BindingSpec(name, i.dtype, tuple((r.min, r.opt, r.max) for r in i.ranges))
        for name, i in zip(made.inputs, inputs)
    ]
    outputs = made.program.graph_signature.output_specs
    job = Job(tuple(specs), tuple(f"output{i}" for i in range(len(outputs))), {}, (TARGET,), converter="onnx")
    onnx.write(made.program, job, folder)
    return made.program, job


def golden(model, job, *arrays):
    """What a model answers to these."""
    with torch.no_grad():
        answers = model(*map(torch.from_numpy, arrays))
    answers = answers if isinstance(answers, tuple) else (answers,)
    inputs = {f"0.opt/{spec.name}": array for spec, array in zip(job.inputs, arrays)}
    return GoldenTensors(inputs, {f"0.opt/{n}": a.float().numpy() for n, a in zip(job.outputs, answers)})


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")
