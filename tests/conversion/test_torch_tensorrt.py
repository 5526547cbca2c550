"""The builder in this process, as on a machine with a GPU: the program goes in as it is, through no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

SCRIPT = """
import json, sys
from mlflow_trt.conversion import build_child
build_child._pretend_gpu()
build_child._without_runtime()
sys.path.insert(0, {tests!r})
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

pair = {{"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}}
kwargs = {{"ids": Input(((1, 4, 8),), "int64"), "mask": Input(((1, 4, 8), 6), "bool")}}
given = parse(Nested(), [Input(((1, 4, 8), 4)), pair], kwargs)
program = export(Nested(), given)
specs = flatten(program, given)
outputs = computed_outputs(program, None)
fed = {{n: interface.fed_dtype(s, placeholder_values(program)[n].dtype) for n, s in specs.items()}}
half = prepare(program, outputs, torch.float16, fed)
inputs = tuple(
    BindingSpec(n, interface.plain(fed[n]), tuple((r.min, r.opt, r.max) for r in s.ranges)) for n, s in specs.items()
)
events = []
settings = {{"offload_module_to_cpu": True, "attn_bias_is_causal": False}}
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
print(json.dumps({{
    "inputs": built.network.inputs, "outputs": built.network.outputs, "bytes": len(built.serialized),
    "events": sorted({{kind for kind, _, _ in events}}), "ended": ended, "hook": _conversion.TRTInterpreter.__module__,
}}))
"""


@pytest.fixture(scope="module")
def built():
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(tests=tests)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_bindings_of_the_network(built):
    assert built["inputs"] == [
        ["x", "float32"],
        ["pair_m", "float32"],
        ["pair_n", "float32"],
        ["ids", "int64"],
        ["mask", "bool"],
    ]
    assert built["outputs"] == [
        ["y", "float32", [-1, 5]],
        ["again.4", "int64", []],  # a size: TensorRT's own is a vector of one
        ["again.5.left", "float32", [-1, 3]],
        ["more.0", "float32", [-1, 8]],
        ["more.1", "bool", [-1, 6]],
        ["more.2", "int64", [-1]],
        ["more.4", "float32", [3]],
        ["more.5", "float32", []],
        ["more.6", "bool", [-1, 5]],
    ]


def test_progress_is_told(built):
    assert built["events"] == ["finish", "start", "step"]


def test_upstreams_interpreter_is_back_in_place(built):
    assert built["hook"] == "torch_tensorrt.dynamo.conversion._TRTInterpreter"


def test_interrupt_ends_the_build(built):
    """Ctrl-C during TensorRT's own work: Python runs there in the progress monitor only."""
    assert built["ended"] == "KeyboardInterrupt"
