# ruff: noqa: E402, I001
"""Converts networks with maxima in this process, and tells as JSON which layers TensorRT was given.

``python -m conversion.layers_of_maxima``; what stands in for the GPU comes before torch's first use.
"""

import json

from mlflow_trt.conversion import build_child, core, torch_tensorrt as builder

build_child._pretend_gpu()
build_child._without_runtime()
import tensorrt as trt
from mlflow_trt import Input, convert
from conversion.models import Gated
from conversion.test_maxima import MAXIMA

kinds, look = [], builder.look


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


builder.look = listed
core.cpu_only.build = lambda program, job, timeout, listener=None: builder.build(program, job, listener)
found = {}
for name in ("relu6", "abs", "max"):
    kinds.clear()
    convert(Gated(MAXIMA[name]).eval(), [Input(((1, 2, 8), 4, 6, 6))], precision="fp32", compute_capabilities=["8.9"])
    found[name] = kinds[kinds.index("PROD") + 1 :]
print(json.dumps(found))
