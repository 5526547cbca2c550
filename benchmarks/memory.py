"""Peak host memory of a fresh process that loads a large plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .context import ROOT, Context
from .record import Figure, Measurement
from .timing import Rounds

RATIO = "peak host memory of loading ÷ the plan's size"

GB = 1e9

_LOAD = """
import json, re, sys
import numpy, mlflow_trt

def kib(field):
    with open("/proc/self/status") as status:
        return int(re.search(rf"^{field}:\\s*(\\d+) kB", status.read(), re.MULTILINE)[1])

# CUDA's and TensorRT's own libraries are not the plan's: a tiny plan is loaded before the count begins.
with mlflow_trt.load_model(sys.argv[1]) as engine:
    engine.predict({"x": numpy.zeros((1, 64), numpy.float32)})
before, peak_before = kib("VmRSS"), kib("VmHWM")
engine = mlflow_trt.load_model(sys.argv[2])
loaded = kib("VmHWM")
engine.predict({"x": numpy.zeros((1, int(sys.argv[3])), numpy.float32)})
print(json.dumps({"before": before, "peak_before": peak_before, "loaded": loaded, "predicted": kib("VmHWM")}))
"""


def peak_memory(context: Context) -> Measurement:
    """A network of 2 GB of float32 weights (0.25 GB in a quick run)."""
    context.need_gpu()
    import mlflow_trt

    width, layers = (15872, 2) if not context.quick else (7936, 1)  # 2.0 GB: less than 2**31 bytes
    folder = context.work / "models" / f"wide-{width}-{layers}"
    begin = time.perf_counter()
    if not folder.exists():
        _save(folder, width, layers)
    built = time.perf_counter() - begin
    size = mlflow_trt.inspect(folder).plans[0].file.size
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    found: list[dict[str, int]] = []
    seconds: Rounds = []
    for _ in range(context.several(3, 1)):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, str(context.model("mlp")), str(folder), str(width)],
            capture_output=True, text=True, env=environment, timeout=max(30, context.budget / 2), check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the loading process failed ({done.returncode}):\n{done.stderr[-3000:]}")
        seconds.append([time.perf_counter() - begin])
        found.append(json.loads(done.stdout.splitlines()[-1]))
        if time.monotonic() > context.deadline(0.7):
            break
    worst = max(found, key=lambda f: f["predicted"] - f["before"])
    measurement = Measurement(
        values={RATIO: (worst["predicted"] - worst["before"]) * 1024 / size},
        figures=[
            Figure("plan", "GB", size / GB),
            Figure(
                "peak above the memory held before, at loading", "GB", (worst["loaded"] - worst["before"]) * 1024 / GB
            ),
            Figure("the same after a call", "GB", (worst["predicted"] - worst["before"]) * 1024 / GB),
            Figure("whole process before, CUDA and TensorRT loaded", "GB", worst["before"] * 1024 / GB),
            Figure("whole process, peak", "GB", worst["predicted"] * 1024 / GB),
            Figure("converting and saving", "s", built),
        ],
        notes=[
            "VmHWM of a fresh process after loading and one call, less its resident memory after loading and closing "
            f"a tiny plan; the worst of {len(found)}."
        ],
    )
    measurement.add("the whole process", seconds, "s")
    return measurement


def _save(folder: Path, width: int, layers: int) -> None:
    import torch
    from torch import nn

    import mlflow_trt

    torch.manual_seed(0)
    stack = []
    for _ in range(layers):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=width**-0.5)
        stack += [linear, nn.ReLU()]

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*stack)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    mlflow_trt.save_model(
        Wide().eval(), folder, inputs=[mlflow_trt.Input((1, width), name="x")], precision="fp32", program="omit"
    )
