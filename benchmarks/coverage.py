"""How many common architectures become engines, and whether these are right: ``python -m benchmarks.coverage``.

    python -m benchmarks.coverage                      all, in fp16 and in their own precision; into benchmarks/results/
    python -m benchmarks.coverage --jobs 8 timm/dla34  some, several at once
    python -m benchmarks.coverage --converter onnx     by one converter instead of whichever takes it
    python -m benchmarks.coverage --compare            on a GPU: beside torch.compile and Torch-TensorRT's own compile

Each is saved as a user would, in a process of its own: batches of 1 to 8, random inputs. Without a GPU that tells
whether it builds, and in how long; on one, parity with the module at every golden point, and the latency of an opt
batch.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .context import ROOT
from .machine import describe, label

PRECISIONS = ("fp16", "own")
RTX = ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings")
"""Packages whose version is TensorRT-RTX's; the first is missing where only what it installs was."""
COMPARED = "torch_tensorrt"
"""In a row: what Torch-TensorRT's own entry point makes of the module."""
OUTCOMES = ("right", "built", "refused", "wrong", "failed", "not measured")
"""built: without a GPU. failed: with an error that is none of ours, or none at all before the time was up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if an engine is wrong, or an error is none of ours."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="as LIBRARY/ARCHITECTURE; default: all")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at once")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="for each")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for all of them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--converter", choices=("auto", "torch_tensorrt", "onnx"), default="auto")
    parser.add_argument("--compare", action="store_true", help="on a GPU: beside two other ways to run the module")
    parser.add_argument("--one", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.names[0], options.one, options.converter, options.compare)
    from .architectures import NAMES

    names = options.names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    machine = describe()
    end = time.monotonic() + options.budget
    rows: list[dict[str, Any]] = []
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = {"date": date, "machine": machine, "jobs": options.jobs, "rows": rows}
    release = next((machine["versions"][name] for name in RTX if name in machine["versions"]), "none")
    by = "" if options.converter == "auto" else f"-{options.converter}"
    stem = f"{date}-{label(machine)}-coverage-{release}{by}{'-compared' if options.compare else ''}"
    threads = max(1, machine["cores"] // options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(apart, name, options, end, threads) for name in names]
        for job in concurrent.futures.as_completed(jobs):
            for row in job.result():
                rows.append(row)
                print(f"{row['name']:40} {row['precision']:5} {row['outcome']:13} {row['why'][:110]}", flush=True)
            rows.sort(key=lambda row: (NAMES.index(row["name"]), row["precision"]))
            (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / f"{stem}.md").write_text(table(report))
    print(summary(rows))
    return int(any(row["outcome"] in ("wrong", "failed") for row in rows))


def apart(name: str, options: argparse.Namespace, end: float, threads: int) -> list[dict[str, Any]]:
    """Runs one architecture in a process of its own, PyTorch with so many threads; a row for each precision."""
    begin = time.monotonic()
    left = min(options.timeout, 1e6, end - begin)
    if left < 20:
        return [row(name, precision, "not measured", why="no time was left") for precision in PRECISIONS]
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-coverage-") as folder:
        path = Path(folder) / "rows.jsonl"
        path.touch()
        command = [sys.executable, "-m", "benchmarks.coverage", name, "--one", str(path)]
        command += ["--converter", options.converter, *(["--compare"] if options.compare else [])]
        environment = {
            **os.environ, "MLFLOW_TRT_CACHE": folder, "TMPDIR": folder, "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        try:
            done = subprocess.run(
                command, env=environment, cwd=ROOT, timeout=left, capture_output=True, text=True, check=False,
            )  # fmt: skip
            why = f"its process ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        except subprocess.TimeoutExpired:
            why = f"not done after {left:.0f} s"
        # A later line of a precision adds to an earlier one: what others do with the module, which may end the process.
        rows = list({found["precision"]: found for found in map(json.loads, path.read_text().splitlines())}.values())
    there = {found["precision"] for found in rows}
    if options.compare and rows and rows[-1]["outcome"] == "right" and COMPARED not in rows[-1]:
        rows[-1][COMPARED] = why
    return rows + [row(name, p, "failed", why=why) for p in PRECISIONS if p not in there]


def row(name: str, precision: str, outcome: str, **more: Any) -> dict[str, Any]:
    """What was found of an architecture in a precision."""
    return {"name": name, "precision": precision, "outcome": outcome, "why": "", **more}


def one(name: str, path: Path, converter: str, compare: bool) -> None:
    """Saves an architecture in each precision, writes what came of it, and ends the process."""
    import warnings

    warnings.filterwarnings("ignore")
    from .architectures import BATCH, make

    for precision in PRECISIONS:
        try:
            architecture = make(name)
            found = save(name, architecture, precision, converter)
        except ImportError as error:
            found = row(name, precision, "not measured", why=str(error))
        write(path, found)
        if compare and found["outcome"] == "right":
            write(path, found | compared(architecture, precision, BATCH))
    # TensorRT and CUDA may crash while an interpreter is torn down; what was found is written already.
    os._exit(0)


def write(path: Path, found: dict[str, Any]) -> None:
    """Adds a row to a file of a child process."""
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")


def save(name: str, architecture: Any, precision: str, converter: str) -> dict[str, Any]:
    """Saves an architecture; a row with its outcome, and what was measured."""
    import mlflow_trt
    from mlflow_trt.errors import ParityError, TrtError

    from .architectures import BATCH

    inputs = {key: mlflow_trt.Input((BATCH, *shape), dtype) for key, shape, dtype in architecture.inputs}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        try:
            mlflow_trt.save_model(
                architecture.module, folder, kwarg_inputs=inputs, precision=None if precision == "own" else precision,
                program="omit", converter=converter,
            )  # fmt: skip
        except ParityError as error:
            return row(name, precision, "wrong", why=words(error, 1500), seconds=time.monotonic() - begin)
        except TrtError as error:
            return row(name, precision, "refused", why=words(error), seconds=time.monotonic() - begin)
        except Exception as error:
            why = f"{type(error).__name__}: {words(error)}"
            return row(name, precision, "failed", why=why, seconds=time.monotonic() - begin)
        seconds = time.monotonic() - begin
        record = mlflow_trt.inspect(folder).plans[0]
    found = row(
        name, precision, "built", seconds=seconds, build_seconds=record.build_seconds, converter=record.converter,
        why=record.converter_reason or "",
    )  # fmt: skip
    if record.parity.status == "passed":
        found["outcome"] = "right"
        found["rel_l2"] = max(o.rel_l2 for point in record.parity.points for o in point.outputs)
        found["p50_ms"] = next((p.p50_ms for p in record.latency.points if p.point == "opt"), None)
    elif "no GPU" not in (record.parity.reason or ""):
        found["outcome"], found["why"] = "not measured", record.parity.reason
    return found


def compared(architecture: Any, precision: str, batches: tuple[int, int, int]) -> dict[str, Any]:
    """The same module by ``torch.compile`` and by Torch-TensorRT's own ``compile``, called as documented."""
    import statistics

    import torch
    import torch_tensorrt

    half = precision == "fp16"
    module = architecture.module.cuda()
    # By position, as the documentation shows it, where the inputs are the first parameters; 2.11 takes no others.
    names = [key for key, *_ in architecture.inputs]
    by_position = list(inspect.signature(module.forward).parameters)[: len(names)] == names
    examples = [
        {k: v.cuda() for k, v in architecture.example(b, torch.Generator().manual_seed(b)).items()} for b in batches
    ]
    found: dict[str, Any] = {}

    def timed(call: Any, given: Mapping[str, torch.Tensor]) -> float:
        samples = []
        for turn in range(60):
            begin = time.perf_counter()
            call(**{k: v.cpu().cuda() for k, v in given.items()}).cpu()  # from and to host memory, as the engine's
            if turn >= 10:
                samples.append(time.perf_counter() - begin)
        return statistics.median(samples) * 1e3

    with torch.no_grad():
        wanted = [module(**given) for given in examples]
        try:
            quick = torch.compile(module)
            with torch.autocast("cuda", torch.float16, enabled=half):
                found["torch_compile_ms"] = timed(quick, examples[1])
        except Exception as error:
            found["torch_compile"] = words(error)
        try:
            specs = {
                k: torch_tensorrt.Input(
                    min_shape=(batches[0], *v.shape[1:]), opt_shape=(batches[1], *v.shape[1:]),
                    max_shape=(batches[2], *v.shape[1:]), dtype=v.dtype,
                )
                for k, v in examples[0].items()
            }  # fmt: skip
            options = {"enabled_precisions": {torch.float16}} if half else {}
            if by_position:
                other = torch_tensorrt.compile(module, ir="dynamo", inputs=[specs[key] for key in names], **options)
                answers = [other(*(given[key] for key in names)) for given in examples]
            else:
                other = torch_tensorrt.compile(module, ir="dynamo", kwarg_inputs=specs, arg_inputs=[], **options)
                answers = [other(**given) for given in examples]
            errors = [float((answer - want).norm() / want.norm()) for answer, want in zip(answers, wanted)]
            found[COMPARED] = f"{max(errors):.1e}"
        except Exception as error:
            found[COMPARED] = f"{type(error).__name__}: {words(error)}"
    return found


def words(error: BaseException, most: int = 300) -> str:
    """The beginning of a message, in one line, without this machine's folders."""
    text = str(error)
    for folder in sorted(filter(None, {str(ROOT), *sys.path}), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return " ".join(text.split())[:most]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of each outcome, by precision."""
    lines = []
    for precision in PRECISIONS:
        counts = Counter(found["outcome"] for found in rows if found["precision"] == precision)
        text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        lines.append(f"{precision}: {sum(counts.values())} architectures: {text}")
    return "\n".join(lines)


def table(report: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    jobs = report["jobs"]
    at_a_time = "one at a time" if jobs == 1 else f"{jobs} at a time, so times are those of a busy machine"
    lines = [
        f"# Coverage, {report['date']}", "",
        f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores of {machine['cpu']}; {versions}. Printed by"
        f" `python -m benchmarks.coverage`; {at_a_time}.", "", summary(report["rows"]).replace("\n", "\n\n"), "",
        "| architecture | precision | outcome | converter | seconds to save | relative error | p50 ms"
        " | torch.compile ms | Torch-TensorRT as documented, relative error | why |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for found in report["rows"]:
        cells = [
            found["name"], found["precision"], found["outcome"], found.get("converter") or "",
            number(found.get("seconds"), ".0f"), number(found.get("rel_l2"), ".1e"), number(found.get("p50_ms"), ".2f"),
            number(found.get("torch_compile_ms"), ".2f"), str(found.get(COMPARED, ""))[:80], found["why"][:160],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def number(value: float | None, form: str) -> str:
    """A figure, or nothing."""
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
