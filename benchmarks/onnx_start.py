"""From an ONNX file to the first answer, beside ONNX Runtime: ``python -m benchmarks.onnx_start``.

    python -m benchmarks.onnx_start                                 ResNet-50; into benchmarks/results/
    python -m benchmarks.onnx_start model.onnx --dim batch=1:8:32   a file of one's own

Each start is a new process, and the two ways take turns: this package converts, saves, loads and predicts;
``mlflow.onnx`` saves, loads and predicts, with ONNX Runtime's CUDA provider where it is there. Without a GPU no engine
can answer, and the reference backend stands in for it. On one, saving includes the check of parity and of latency.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_trt.cli.parsing import parse_dims

from .context import MODELS, ROOT, close, has_gpu, input_name, module
from .machine import describe, label
from .startup import steps_of
from .timing import Rounds, median, ratio

OURS, THEIRS = "mlflow_trt", "mlflow.onnx"
ALL = "all of it"

_OURS = """
import numpy, mlflow.pyfunc, mlflow_trt
mlflow_trt.save_model
step('import')
plan = mlflow_trt.convert({file!r}, dims={dims!r}, precision={precision!r})
step('convert')
mlflow_trt.save_model(plan, {folder!r})
step('save')
model = mlflow.pyfunc.load_model({folder!r}, model_config={{'backend': {backend!r}}})
step('load')
answer = model.predict(dict(numpy.load({inputs!r})))
step('first predict')
numpy.savez({answer!r}, provider={backend!r}, **answer)
"""
_THEIRS = """
import numpy, mlflow.pyfunc, mlflow.onnx, onnx
step('import')
mlflow.onnx.save_model(onnx.load({file!r}), {folder!r})
step('save')
model = mlflow.pyfunc.load_model({folder!r})
step('load')
answer = model.predict(dict(numpy.load({inputs!r})))
step('first predict')
numpy.savez({answer!r}, provider=model.get_raw_model().get_providers()[0], **answer)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_start", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: ResNet-50, exported by PyTorch")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=MIN:OPT:MAX", help="of the file's inputs")
    parser.add_argument("--precision", default="fp16", choices=("fp16", "own"))
    parser.add_argument("--quick", action="store_true", help="a small network instead of ResNet-50")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="of each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-onnx-start-") as work:
        file, ranges = (
            (options.file, parse_dims(options.dim))
            if options.file
            else exported("mlp" if options.quick else "resnet50", Path(work))
        )
        found = starts(file.resolve(), ranges, options.precision, options.starts, Path(work))
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine, "file": file.name,
        "precision": options.precision, **found,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{report['date']}-{label(machine)}-onnx-start"
    (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text(table(report))
    print(table(report))
    return 0


def exported(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Writes one of the benchmarks' networks as an ONNX file; it, and the ranges of its dimensions."""
    import torch

    sizes, rest, _ = MODELS[name]
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        module(name).eval(), (torch.zeros(2, *rest),), path, input_names=[input_name(name)], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=sizes[2])},), external_data=False, verbose=False,
    )  # fmt: skip
    return path, {"batch": sizes}


def starts(file: Path, ranges: Mapping[str, Any], precision: str, turns: int, work: Path) -> dict[str, Any]:
    """Starts both ways in turn.

    Args:
        file: The ONNX file.
        ranges: By the names of its dynamic dimensions.
        precision: What the engine computes in.
        turns: How often each.
        work: A folder for what they write.

    Returns:
        ``steps``: seconds, by way and step, round by round; ``by``: what answered in each way.

    Raises:
        RuntimeError: A process failed, or an answer is not that of ONNX Runtime on the CPU.
    """
    import mlflow_trt

    asked = None if precision == "own" else precision
    golden = mlflow_trt.convert(file, dims=dict(ranges), precision=asked).golden
    points = {point: (given, answered) for _, point, given, answered in golden.points()}
    given, wanted = points.get("min") or points["opt"]
    inputs, answer = work / "inputs.npz", work / "answer.npz"
    np.savez(inputs, **given)
    values = {
        "file": str(file), "dims": dict(ranges), "precision": asked, "inputs": str(inputs), "answer": str(answer),
        "backend": "tensorrt" if has_gpu() else "reference",
    }  # fmt: skip
    codes = {OURS: _OURS, THEIRS: _THEIRS}
    steps: dict[str, dict[str, Rounds]] = {way: {} for way in codes}
    by: dict[str, str] = {}
    for turn in range(turns):
        for way in list(codes)[:: 1 if turn % 2 == 0 else -1]:
            folder, cache = work / "model", work / "cache"
            taken = steps_of(codes[way].format(**values, folder=str(folder)), {"MLFLOW_TRT_CACHE": str(cache)})
            taken.pop("")  # writing the answer down
            for step, seconds in {**taken, ALL: sum(taken.values())}.items():
                steps[way].setdefault(step, []).append([seconds])
            with np.load(answer) as found:
                by[way] = str(found["provider"])
                if not all(close(found[name], value) for name, value in wanted.items()):
                    raise RuntimeError(f"{way} by {by[way]}: the answer differs from that of ONNX Runtime on the CPU")
            for left in (folder, cache):
                shutil.rmtree(left, ignore_errors=True)
    return {"steps": steps, "by": by}


NAMES = {"tensorrt": "a TensorRT engine", "reference": "the reference backend: no GPU is here, so no engine answers"}


def table(report: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    machine, steps, by = report["machine"], report["steps"], report["by"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    every = list(dict.fromkeys((*(s for s in steps[OURS] if s != ALL), *(s for s in steps[THEIRS] if s != ALL), ALL)))
    times = ratio(steps[OURS][ALL], steps[THEIRS][ALL])
    lines = [
        f"# From an ONNX file to the first answer, {report['date']}", "",
        f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores of {machine['cpu']} (load before:"
        f" {machine['load_before']}); {versions}. Printed by `python -m benchmarks.onnx_start`; {report['file']},"
        f" precision {report['precision']}.", "",
        f"{OURS} is answered by {NAMES[by[OURS]]}; {THEIRS} by ONNX Runtime's {by[THEIRS]}. Medians of"
        f" {len(steps[OURS][ALL])} new processes each, in turn, with nothing in the package's cache; all of it by"
        f" {OURS} takes {times:.2f} times as long.", "",
        f"| step | {OURS}, s | {THEIRS}, s |", "| --- | ---: | ---: |",
    ]  # fmt: skip
    for step in every:
        cells = (f"{median(steps[way][step]):.2f}" if step in steps[way] else "" for way in (OURS, THEIRS))
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
