# ruff: noqa: E402, I001
"""Converts networks with maxima in this process, and tells as JSON which layers TensorRT was given.

``python -m conversion.layers_of_maxima``; what stands in for the GPU comes before torch's first use.
"""

import json

from mlflow_trt.conversion import build_child, cpu_only, onnx_parser, torch_tensorrt

build_child._pretend_gpu()
build_child._without_runtime()
import tensorrt as trt
from mlflow_trt import Input, convert
from conversion.models import Gated
from conversion.test_maxima import MAXIMA

kinds, look = [], torch_tensorrt.look


def listed(module, net, tf32):
    for layer in map(net.get_layer, range(net.num_layers)):
        kind = layer.type.name
        if kind == "ACTIVATION":
            layer.__class__ = trt.IActivationLayer
            kind = layer.type.name
        elif kind in ("ELEMENTWISE", "UNARY"):
            layer.__class__ = trt.IElementWiseLayer if kind == "ELEMENTWISE" else trt.IUnaryLayer
            kind = layer.op.name
        kinds.append(kind)
    return look(module, net, tf32)


def build(folder, job, timeout, listener=None, imports=()):
    way = build_child._from_onnx if job.converter == "onnx" else build_child._from_program
    return way(folder, job, {"imports": [], "path": []}, listener)


torch_tensorrt.look = onnx_parser.look = listed
cpu_only.build = build
found = {}
for converter in ("torch_tensorrt", "onnx"):
    found[converter] = {}
    for name in ("relu6", "abs", "max"):
        kinds.clear()
        model = Gated(MAXIMA[name]).eval()
        inputs = [Input(((1, 2, 8), 4, 6, 6))]
        convert(model, inputs, precision="fp32", compute_capabilities=["8.9"], converter=converter)
        found[converter][name] = kinds[kinds.index("PROD") + 1 :]
print(json.dumps(found))
