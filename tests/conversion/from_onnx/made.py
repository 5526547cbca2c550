"""Graphs made by hand, and who answers them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion import onnx_parser
from mlflow_trt.conversion.from_onnx.model import read, write
from mlflow_trt.conversion.job import BindingSpec, Job

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING

node = helper.make_node


def value(name, shape=("batch", 4), dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes, inputs, outputs, weights=None):
    """What is no value yet is one of float32 and of shape (batch, 4)."""
    made = [
        v if isinstance(v, np.ndarray | onnx.TensorProto) else numpy_helper.from_array(np.array(v))
        for v in (weights or {}).values()
    ]
    made = [v if isinstance(v, onnx.TensorProto) else numpy_helper.from_array(v) for v in made]
    for name, tensor in zip(weights or {}, made):
        tensor.name = name
    values = [[value(v) if isinstance(v, str) else v for v in each] for each in (inputs, outputs)]
    return helper.make_graph(nodes, "graph", *values, made)


def model(nodes, inputs=("x",), outputs=("y",), weights=None, opset=20, **domains):
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain.replace("_", "."), version) for domain, version in domains.items()]
    return helper.make_model(graph(nodes, inputs, outputs, weights), opset_imports=imports, ir_version=10)


def linear(rows=4, columns=3):
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return model([node("MatMul", ["x", "w"], ["y"])], [value("x", ("batch", rows))], ["y"], {"w": weight})


def answers(proto, **inputs):
    """What ONNX Runtime answers, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {output.name: value for output, value in zip(session.get_outputs(), session.run(None, inputs))}


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operators(proto):
    return [each.op_type for each in proto.graph.node]


def built(proto, **ranges):
    """Builds an engine by the real parser.

    Args:
        proto: The graph.
        ranges: The least, usual and greatest shape of each dynamic input.

    Returns:
        Names, dtypes and shapes of its outputs.
    """
    source = read(proto)
    specs = [BindingSpec(i.name, i.dtype, (ranges.get(i.name, (i.shape,) * 3),)) for i in source.inputs]
    job = Job(tuple(specs), tuple(o.name for o in source.outputs), {}, ("8.6",), converter="onnx")
    with tempfile.TemporaryDirectory() as folder:
        return onnx_parser.build(write(source, Path(folder)), job).network.outputs
