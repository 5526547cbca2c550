"""From a new process to the first correct answer, and what imports cost, each in fresh processes, in turn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlflow_trt.plan import manifest as _manifest

from .context import ROOT, Context, arrays, close
from .record import Measurement
from .timing import Rounds, difference

FIRST_ANSWER = "first correct answer, warm − import mlflow.pyfunc"
IMPORT = "import of all that loading needs − import mlflow.pyfunc"

_STEP = "def step(name): print('step', name, time.time(), sep='|', flush=True)"
_IMPORT_MLFLOW = "import mlflow.pyfunc"
_PYFUNC = """
import numpy, mlflow.pyfunc
answer = mlflow.pyfunc.load_model({folder!r}{options}).predict(dict(numpy.load({inputs!r})))
"""
# MLflow compares the model's requirements with every file of every installed package, only to warn.
_NO_WARNINGS = ", suppress_warnings=True"
_NATIVE = """
import numpy, mlflow_trt
mlflow_trt.load_model
step('imports')
from mlflow_trt.plan import host
host.probe()
step('asking for the GPU')
engine = mlflow_trt.load_model({folder!r})
step('loading')
answer = engine.predict(dict(numpy.load({inputs!r})))
step('the first call')
"""
_LOADING = """
import mlflow.pyfunc, mlflow_trt, mlflow_trt.engine
mlflow_trt.load_model, mlflow_trt.check, mlflow_trt.inspect, mlflow_trt.Input, mlflow_trt.Plan
"""
# Written when the process ends, after the time was taken: saving is the benchmark's, not the model's.
_KEEP = "import atexit; atexit.register(lambda: numpy.save({answer!r}, answer['logits']))"


def steps_of(code: str, env: Mapping[str, str] | None = None) -> dict[str, float]:
    """Runs code in a fresh interpreter; returns the seconds of its steps, from the interpreter's start on.

    Code ends a step by ``step(name)``; what follows the last one is the step ``""``.
    """
    # Told before anything is torn down; what follows it is not timed.
    code = f"import time\n{_STEP}\n{code}\nstep('')"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
    last = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"a fresh process failed ({done.returncode}):\n{done.stderr[-3000:]}")
    steps: dict[str, float] = {}
    for line in done.stdout.splitlines():
        if line.startswith("step|"):
            _, name, now = line.split("|")
            steps[name], last = float(now) - last, float(now)
    return steps


def seconds_until_done(code: str, env: Mapping[str, str] | None = None) -> float:
    """Runs code in a fresh interpreter; returns the seconds from its start until the code's last line."""
    return sum(steps_of(code, env).values())


def first_answer(context: Context) -> Measurement:
    """ResNet-50 FP16, local artifact, batch 1, through ``mlflow.pyfunc``."""
    context.need_gpu()
    folder, work = context.model("resnet50"), context.work / "startup"
    work.mkdir(parents=True, exist_ok=True)
    inputs, answer = work / "inputs.npz", work / "answer.npy"
    np.savez(inputs, **arrays("resnet50", 1))
    cold_folder = _without_cache(folder, work / "cold")

    def code(template: str, model: Path, options: str = "") -> str:
        return (template + _KEEP).format(folder=str(model), inputs=str(inputs), answer=str(answer), options=options)

    warm_cache = {"MLFLOW_TRT_CACHE": str(work / "warm-cache")}
    seconds_until_done(code(_PYFUNC, folder), warm_cache)  # leaves the runtime cache behind
    expected = np.load(answer)
    times: dict[str, Rounds] = {}

    def run(name: str, text: str, env: Mapping[str, str]) -> None:
        answer.unlink(missing_ok=True)
        steps = steps_of(text, env)
        times.setdefault(name, []).append([sum(steps.values())])
        for step in filter(None, steps):
            times.setdefault(f"{name}: {step}", []).append([steps[step]])
        if "answer" in name and not close(np.load(answer), expected):
            raise RuntimeError(f"{name}: the answer differs")

    for turn in range(context.several(5, 1)):
        if turn and time.monotonic() > context.deadline(0.75):
            break
        run("import mlflow.pyfunc", _IMPORT_MLFLOW, {})
        run("first answer through mlflow.pyfunc, warm", code(_PYFUNC, folder), warm_cache)
        run(f"first answer through mlflow.pyfunc{_NO_WARNINGS}, warm", code(_PYFUNC, folder, _NO_WARNINGS), warm_cache)
        run("first answer through mlflow_trt.load_model, warm", code(_NATIVE, folder), warm_cache)
        if turn < 3:  # slow, and not what the goal is about
            shutil.rmtree(work / "cold-cache", ignore_errors=True)
            cold = {"MLFLOW_TRT_CACHE": str(work / "cold-cache")}
            run("first answer through mlflow.pyfunc, no runtime cache", code(_PYFUNC, cold_folder), cold)
    measurement = Measurement(
        values={
            FIRST_ANSWER: difference(times["first answer through mlflow.pyfunc, warm"], times["import mlflow.pyfunc"])
        },
        notes=["From starting the interpreter; the files were read before, so the page cache is warm in all of them."],
    )
    for name, rounds in times.items():
        measurement.add(name, rounds, "s")
    try:
        measurement.add("import torch_tensorrt", [[seconds_until_done("import torch_tensorrt")]], "s")
    except RuntimeError as error:
        measurement.missing["import torch_tensorrt"] = str(error).splitlines()[-1]
    return measurement


def _without_cache(folder: Path, copy: Path) -> Path:
    """Copies a model, less its runtime caches."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("runtime-cache.bin"))
    manifest = json.loads((copy / _manifest.FILE_NAME).read_text())
    for record in manifest["plans"]:
        record["runtime_cache"] = None
    (copy / _manifest.FILE_NAME).write_text(json.dumps(manifest))
    return copy


def imports(context: Context) -> Measurement:
    """What importing this package adds to MLflow's own import, on any machine."""
    codes = {
        "import mlflow.pyfunc": _IMPORT_MLFLOW,
        "import mlflow.pyfunc, mlflow_trt": "import mlflow.pyfunc, mlflow_trt",
        "and everything that loading needs": _LOADING,
    }
    times: dict[str, Rounds] = {name: [] for name in codes}
    for code in codes.values():
        seconds_until_done(code)  # compiles the byte code
    for turn in range(context.several(15, 1)):
        if turn and time.monotonic() > context.deadline():
            break
        for name, code in codes.items():
            times[name].append([seconds_until_done(code)])
    measurement = Measurement(
        values={IMPORT: difference(times["and everything that loading needs"], times["import mlflow.pyfunc"])}
    )
    for name, rounds in times.items():
        measurement.add(name, rounds, "s")
    measurement.notes.append(f"Medians of {len(times['import mlflow.pyfunc'])} fresh processes each, in turn.")
    return measurement
