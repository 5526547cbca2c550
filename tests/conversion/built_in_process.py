# ruff: noqa: E402, I001
"""Builds in this process, as on a machine with a GPU, and tells as JSON what came of it.

``python -m conversion.built_in_process``; what stands in for the GPU comes before torch's first use.
"""

import json

from mlflow_trt.conversion import build_child

build_child._pretend_gpu()
build_child._without_runtime()
import torch
from mlflow_trt import Input
from mlflow_trt.conversion import interface
from mlflow_trt.conversion.arguments import parse
from mlflow_trt.conversion.job import BindingSpec, Job
from mlflow_trt.conversion.torch_tensorrt import build
from mlflow_trt.conversion.precision import prepare
from mlflow_trt.conversion.program import export, flatten, placeholder_values
from mlflow_trt.conversion.structure import computed_outputs
from conversion.models import Nested

pair = {"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}
kwargs = {"ids": Input(((1, 4, 8),), "int64"), "mask": Input(((1, 4, 8), 6), "bool")}
given = parse(Nested(), [Input(((1, 4, 8), 4)), pair], kwargs)
program = export(Nested(), given)
specs = flatten(program, given)
outputs = computed_outputs(program, None)
fed = {n: interface.fed_dtype(s, placeholder_values(program)[n].dtype) for n, s in specs.items()}
half = prepare(program, outputs, torch.float16, fed)
inputs = tuple(
    BindingSpec(n, interface.plain(fed[n]), tuple((r.min, r.opt, r.max) for r in s.ranges)) for n, s in specs.items()
)
events = []
settings = {"offload_module_to_cpu": True, "attn_bias_is_causal": False}
job = Job(inputs, interface.bindings(specs, outputs), settings, ("8.6",))
built = build(half.program, job, lambda *event: events.append(event))


def interrupt(*event):
    raise KeyboardInterrupt


try:
    build(half.program, job, interrupt)
    ended = "built"
except KeyboardInterrupt:
    ended = "KeyboardInterrupt"
from torch_tensorrt.dynamo.conversion import _conversion

print(
    json.dumps(
        {
            "inputs": built.network.inputs,
            "outputs": built.network.outputs,
            "bytes": len(built.serialized),
            "events": sorted({kind for kind, _, _ in events}),
            "ended": ended,
            "hook": _conversion.TRTInterpreter.__module__,
        }
    )
)
