"""Whether an engine answers the same again and again: ``python -m benchmarks.repeats timm/convnextv2_atto``.

Some engines answer rightly at one load and wrongly at the next, or at one shape only. An architecture of
:mod:`benchmarks.coverage` is converted once by each converter, and its engine loaded again and again, its golden points
asked in turn and in the other order. A line for each load: the relative errors at each point. Needs a GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mlflow_trt
from mlflow_trt import plan
from mlflow_trt.engine import load
from mlflow_trt.plan.files import GoldenTensors

from .architectures import BATCH, NAMES, make
from .machine import introduction

WRONG = 0.05
CALLS = 6
"""At each point of each load."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeats", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES, metavar="NAME", help="as LIBRARY/ARCHITECTURE")
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"), help="default: the model's own")
    parser.add_argument("--converter", choices=("torch_tensorrt", "onnx"), help="default: both")
    parser.add_argument("--seconds", type=float, default=120.0, help="for each converter")
    options = parser.parse_args(arguments)
    print(introduction(f"python -m benchmarks.repeats {options.name}"))
    converters = [options.converter] if options.converter else ["torch_tensorrt", "onnx"]
    found = [repeated(options.name, options.precision, converter, options.seconds) for converter in converters]
    return int(any(found))


def repeated(name: str, precision: str | None, converter: str, seconds: float) -> bool:
    """Prints what an engine answers at every load; whether any answer was wrong."""
    architecture = make(name)
    inputs = {key: mlflow_trt.Input((BATCH, *shape), dtype) for key, shape, dtype in architecture.inputs}
    begin = time.monotonic()
    wrong = False
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-repeats-") as scratch:
        folder = Path(scratch)
        made = mlflow_trt.convert(architecture.module, kwarg_inputs=inputs, precision=precision, converter=converter)
        manifest = plan.write([made], folder, program=False)
        assert manifest.golden is not None
        golden = plan.read_golden(folder, manifest.golden)
        print(f"{name}, {precision or 'own'}, {converter}: built in {time.monotonic() - begin:.0f} s", flush=True)
        logging.getLogger("mlflow_trt.engine").setLevel(logging.DEBUG)  # says which kernels were tried
        turn = 0
        while time.monotonic() - begin < seconds:
            turn += 1
            try:
                with load(folder, manifest) as engine:
                    found = errors(engine, golden, backwards=turn % 2 == 0)
            except mlflow_trt.TrtError as error:
                print(f"{turn:3} {type(error).__name__}: {str(error)[:200]}", flush=True)
                continue
            wrong |= not all(error <= WRONG for each in found.values() for error in each)
            texts = (f"{point} {' '.join(f'{error:.1e}' for error in each)}" for point, each in found.items())
            print(f"{turn:3} {' | '.join(texts)}", flush=True)
    return wrong


def errors(engine: Any, golden: GoldenTensors, backwards: bool) -> dict[str, list[float]]:
    """The relative L2 errors of several calls at every point."""
    points = list(golden.points())
    found: dict[str, list[float]] = {}
    for _, point, given, wanted in reversed(points) if backwards else points:
        for _ in range(CALLS):
            answers = engine.predict(given)
            worst = max(
                float(np.linalg.norm(answers[name] - right) / np.linalg.norm(right)) for name, right in wanted.items()
            )
            found.setdefault(point, []).append(worst)
    return found


if __name__ == "__main__":
    sys.exit(main())
