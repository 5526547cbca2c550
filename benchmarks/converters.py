"""Both converters of modules beside each other: ``python -m benchmarks.converters``.

    python -m benchmarks.converters                            seconds to save, in fp16; into benchmarks/results/
    python -m benchmarks.converters --rounds 1 torch/pointnet  some, once
    python -m benchmarks.converters --engines --jobs 4         on a GPU: what both make of networks of real sizes

Each conversion is in a process of its own, batches of 1 to 8, random weights. Seconds are those of ``save_model``, less
what measuring on a GPU takes; the converters take turns, one conversion at a time. With ``--engines`` several are
converted at once, and then, alone, the engines of one network answer in turn, rounds of both interleaved.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .context import ROOT
from .converter_child import BATCHES
from .coverage import number
from .machine import describe, label
from .record import Goal
from .timing import median, ratio

CONVERTERS = ("onnx", "torch_tensorrt")
PRECISIONS = ("fp16", "own")
GOAL = Goal("seconds to save by ONNX ÷ by Torch-TensorRT, median", 0.333, "×")
SAVED = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny", "torchvision/vit_b_16", "timm/repvgg_a0", "timm/mixer_s32_224", "transformers/bert",
    "transformers/gpt2", "transformers/vit", "torch/pointnet",
)  # fmt: skip
"""What is saved unless names are given: both converters take them."""
LEAST = 20.0
"""Seconds: with less left, nothing is begun."""
CONVERTING = 0.6
"""The part of a budget after which no conversion goes on, where engines are to be timed after all of them."""
TIMING = 8.0
"""Seconds of calls of one network's engines, loading and compiling aside."""

Row = dict[str, Any]
Child = Callable[..., Row]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a conversion ends with an error that is none of ours, or an engine is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.converters", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="LIBRARY/ARCHITECTURE, or one of a real size")
    parser.add_argument("--engines", action="store_true", help="time what they make, on a GPU")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each saves each (not --engines)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="conversions at once (--engines)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="for each process")
    parser.add_argument("--budget", type=float, default=1e6, metavar="SECONDS", help="for all of them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    from .architectures import NAMES
    from .real_sizes import NETWORKS

    names = options.names or list(NETWORKS if options.engines else SAVED)
    if unknown := sorted(set(names) - {*NAMES, *NETWORKS}):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join((*NETWORKS, *NAMES))}")
    machine = describe()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    end = time.monotonic() + options.budget
    rows: dict[tuple[object, ...], Row] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{date}-{label(machine)}-converters{'-engines' if options.engines else ''}"
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-converters-") as work:
        threads = max(1, machine["cores"] // (options.jobs if options.engines else 1))
        child = functools.partial(in_child, options.timeout, threads)
        found = (
            engine_rows(names, child, Path(work), options.jobs, options.budget)
            if options.engines
            else save_rows(names, child, Path(work), options.rounds, end)
        )
        for row in found:
            rows[row["name"], row.get("precision"), row.get("batch")] = row
            print(" | ".join(cells(row)), flush=True)
            report = {"date": date, "machine": machine, "jobs": options.jobs, "rows": list(rows.values())}
            (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / f"{stem}.md").write_text(table(report))
    print("\n".join(summary(list(rows.values()))))
    return int(any(row[by]["outcome"] in ("failed", "wrong") for row in rows.values() for by in CONVERTERS))


def in_child(timeout: float, threads: int, end: float, *arguments: object) -> Row:
    """Runs :mod:`benchmarks.converter_child`, PyTorch with so many threads; what it found.

    Args:
        timeout: Seconds that it may take.
        threads: PyTorch's.
        end: ``time.monotonic()`` after which it does not go on.
        arguments: The child's.
    """
    left = min(timeout, end - time.monotonic())
    if left < min(LEAST, timeout):
        return {"outcome": "not measured", "why": "no time was left"}
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-converters-") as folder:
        environment = {
            **os.environ, "MLFLOW_TRT_CACHE": folder, "TMPDIR": folder, "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.converter_child", *map(str, arguments)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=ROOT, timeout=left, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return {"outcome": "not measured", "why": f"not done after {left:.0f} s"}
    if done.returncode:
        why = f"its process ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        return {"outcome": "failed", "why": why}
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def save_rows(names: Sequence[str], child: Child, work: Path, rounds: int, end: float) -> Iterator[Row]:
    """Has both converters save each architecture in turn; yields each one's row."""
    for name in names:
        found: dict[str, list[Row]] = {by: [] for by in CONVERTERS}
        for turn in range(rounds):
            for by in CONVERTERS[:: 1 if turn % 2 == 0 else -1]:
                if not found[by] or found[by][-1]["outcome"] == "saved":
                    folder = work / f"{by}-{turn}"
                    found[by].append(child(end, "save", name, "fp16", by, folder))
                    shutil.rmtree(folder, ignore_errors=True)
        yield save_row(name, found)


def save_row(name: str, found: Mapping[str, Sequence[Row]]) -> Row:
    """What several conversions by each converter come to."""
    row: Row = {"name": name, "ratio": None}
    for by, each in found.items():
        bad = next((one for one in each if one["outcome"] != "saved"), None)
        seconds = [one["seconds"] for one in each if "seconds" in one]
        row[by] = {"outcome": (bad or each[0])["outcome"], "why": (bad or {}).get("why", ""), "seconds": seconds}
    # Where time was up, the rounds that both have.
    turns = list(zip(*([[s] for s in row[by]["seconds"]] for by in CONVERTERS), strict=False))
    if turns:
        row["ratio"] = ratio([mine for mine, _ in turns], [theirs for _, theirs in turns])
    return row


def engine_rows(names: Sequence[str], child: Child, work: Path, jobs: int, budget: float) -> Iterator[Row]:
    """Converts all networks, then times their engines; yields rows when they are converted, and again when timed."""
    begin = time.monotonic()
    wanted = [(name, precision) for precision in PRECISIONS for name in names]
    converted: dict[tuple[str, str], dict[str, Row]] = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        end = begin + budget * CONVERTING
        several = [
            {
                by: pool.submit(child, end, "save", name, precision, by, folder_of(work, name, precision) / by)
                for by in CONVERTERS
            }
            for name, precision in wanted
        ]
        for key, both in zip(wanted, several, strict=True):
            converted[key] = {by: job.result() for by, job in both.items()}
            yield from rows_of(*key, converted[key], {"why": "not timed yet"})
    for place, (name, precision) in enumerate(wanted):
        folder = folder_of(work, name, precision)
        saved = [by for by in CONVERTERS if converted[name, precision][by]["outcome"] == "saved"]
        timed: Row = {"why": "none was saved"}
        if saved:
            left = begin + budget - time.monotonic()
            seconds = min(TIMING, left / (len(wanted) - place) / 4)
            timed = child(begin + budget, "time", name, seconds, *(folder / by for by in saved))
        yield from rows_of(name, precision, converted[name, precision], timed)
        shutil.rmtree(folder, ignore_errors=True)


def folder_of(work: Path, name: str, precision: str) -> Path:
    """Where the models of a network are."""
    return work / f"{name.replace('/', '-')}-{precision}"


def rows_of(name: str, precision: str, converted: Mapping[str, Row], timed: Row) -> Iterator[Row]:
    """The rows of a network: one for each batch size."""
    for batch in BATCHES:
        rounds = timed.get("batches", {}).get(str(batch), {})
        row: Row = {"name": name, "precision": precision, "batch": batch, "ratio": None, "why": timed.get("why", "")}
        for by in CONVERTERS:
            row[by] = {"why": "", **converted[by]}
            if by in rounds:
                row[by]["p50_ms"] = median(rounds[by]) * 1e3
        if len(rounds) == len(CONVERTERS):
            row["ratio"] = ratio(*(rounds[by] for by in CONVERTERS))
        yield row


def summary(rows: Sequence[Row]) -> list[str]:
    """What all rows come to, in lines."""
    measured = [row["ratio"] for row in rows if row["ratio"] is not None]
    if not measured:
        return [f"Of {len(rows)} rows none has both figures."]
    middle = statistics.median(measured)
    spread = f"{middle:.2f} (from {min(measured):.2f} to {max(measured):.2f}; {len(measured)} of {len(rows)} rows)"
    if "precision" in rows[0]:
        return [f"p50 by ONNX ÷ by Torch-TensorRT, median: {spread}."]
    return [f"{GOAL.name}: {spread}; goal {GOAL.text()}: {GOAL.verdict(middle)}."]


def cells(row: Row) -> list[str]:
    """A row of the table."""
    one, other = (row[by] for by in CONVERTERS)
    why = [row.get("why", "")] + [
        f"{by}: {row[by]['outcome']}: {row[by]['why']}" for by in CONVERTERS if row[by]["why"]
    ]
    last = [number(row["ratio"], ".2f"), "; ".join(filter(None, why))[:200].replace("|", "\\|")]
    if "precision" not in row:
        return [row["name"], *(seconds(row[by]["seconds"]) for by in CONVERTERS), *last]
    return [
        row["name"], row["precision"], str(row["batch"]), error(one), error(other),
        number(one.get("p50_ms"), ".3f"), number(other.get("p50_ms"), ".3f"), *last,
    ]  # fmt: skip


def seconds(found: Sequence[float]) -> str:
    """The median, and all of several."""
    each = f" ({', '.join(format(one, '.1f') for one in found)})" if len(found) > 1 else ""
    return f"{statistics.median(found):.1f}{each}" if found else ""


def error(found: Row) -> str:
    """The relative error that was recorded, or why there is none."""
    return number(found.get("rel_l2"), ".1e") or ("not measured" if found["outcome"] == "saved" else found["outcome"])


def table(report: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    machine, rows = report["machine"], report["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if timed := "precision" in rows[0]:
        how = f"--engines`; {report['jobs']} conversions at once, and the timings alone after them"
        head = ("network", "precision", "batch", "relative error, ONNX", "relative error, Torch-TensorRT")
        head = (*head, "p50 ms, ONNX", "p50 ms, Torch-TensorRT", "ratio", "why")
    else:
        how = "`; fp16, one conversion at a time, each in a process of its own, the converters in turn"
        head = ("architecture", "seconds to save, ONNX", "seconds to save, Torch-TensorRT", "ratio", "why")
    lines = [
        f"# Converters, {report['date']}", "",
        f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores of {machine['cpu']} (load before:"
        f" {machine['load_before']}); {versions}. Printed by `python -m benchmarks.converters{' ' * timed}{how}.",
        "", *summary(rows), "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}",
    ]  # fmt: skip
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
