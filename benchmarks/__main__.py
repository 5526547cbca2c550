"""``python -m benchmarks``: runs the suite, each benchmark in its own process, and writes what was found.

python -m benchmarks                         everything, into benchmarks/results/
python -m benchmarks --quick                 a few repetitions: to see that it runs, not for numbers
python -m benchmarks --out DIR threads       one of them, elsewhere
python -m benchmarks --list
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from .context import ROOT, Context
from .machine import describe, label
from .record import SCHEMA_VERSION, NotMeasured, result, table, write
from .suite import SUITE, Benchmark


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 1 if a benchmark failed. A missed goal is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    names = [benchmark.name for benchmark in SUITE]
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all")
    parser.add_argument("--quick", action="store_true", help="few repetitions and small models")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps the models here; default: a temporary folder")
    parser.add_argument("--add", action="store_true", help="keep the other entries of today's file of this machine")
    parser.add_argument("--budget", type=float, default=3600, metavar="SECONDS", help="for all of them together")
    parser.add_argument("--list", action="store_true", help="names the benchmarks and their goals")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)  # the process of one benchmark
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
    if options.list:
        for benchmark in SUITE:
            goals = "; ".join(f"{goal.name} {goal.text()}" for goal in benchmark.goals)
            print(f"{benchmark.name:17}{benchmark.title}{f' ({goals})' if goals else ''}")
        return 0
    if options.one:
        return _run_here(_named(options.one), options.work, options.quick, options.budget, options.out)
    if options.work:
        return _run_all(options, options.work.resolve())
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-benchmarks-") as work:
        return _run_all(options, Path(work))


def _run_all(options: argparse.Namespace, work: Path) -> int:
    end = time.monotonic() + options.budget
    started = datetime.datetime.now(datetime.UTC)
    machine = describe()
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "date": started.date().isoformat(),
        "quick": options.quick,
        "machine": machine,
        "benchmarks": [],
    }
    stem = f"{report['date']}-{label(machine)}{'-quick' if options.quick else ''}"
    path = options.out / f"{stem}.json"
    kept = {entry["name"]: entry for entry in _entries(path)} if options.add else {}
    # prepare comes along: without it the first benchmark would pay for the conversion.
    wanted = options.names or [benchmark.name for benchmark in SUITE]
    chosen = [b for b in SUITE if b.name in wanted or (b.name == "prepare" and b.name not in kept)]
    for benchmark in chosen:
        print(f"{benchmark.name} … ", end="", file=sys.stderr, flush=True)
        entry = _run_apart(benchmark, work, options.quick, min(benchmark.budget, end - time.monotonic()))
        kept[benchmark.name] = entry
        report["benchmarks"] = [kept[b.name] for b in SUITE if b.name in kept]
        write(options.out, stem, report)  # after each: a run that is cut short leaves what it has
        print(f"{entry['status']}, {entry['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(table(report))
    print(f"Written to {path}", file=sys.stderr)
    return 1 if any(kept[benchmark.name]["status"] == "failed" for benchmark in chosen) else 0


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    except FileNotFoundError:
        return []
    return entries


def _run_apart(benchmark: Benchmark, work: Path, quick: bool, budget: float) -> dict[str, Any]:
    """Runs one in a process of its own, and ends that, and whatever it started, when its time is up."""

    def entry(status: Any, **more: Any) -> dict[str, Any]:
        return result(
            benchmark.name,
            benchmark.title,
            benchmark.goals,
            status,
            seconds=time.monotonic() - begin,
            **more,
        )

    begin = time.monotonic()
    if budget < 5:
        return entry("not measured", reason="the time budget of the whole run was used up")
    out = work / "entries" / f"{benchmark.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", "benchmarks", "--one", benchmark.name, "--out", str(out)]
    command += ["--work", str(work), "--budget", str(budget), *(["--quick"] if quick else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MLFLOW_TRT_CACHE": str(work / "cache"),  # nothing that the user's own cache holds makes a cold start warm
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            child.wait(timeout=budget)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            tail = log.read_text(errors="replace")[-3000:]
            return entry("failed", reason=f"not done after {budget:.0f} s", traceback=tail)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if not out.exists():
        tail = log.read_text(errors="replace")[-3000:]
        return entry("failed", reason=f"its process ended with {child.returncode} and no result", traceback=tail)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _run_here(benchmark: Benchmark, work: Path, quick: bool, budget: float, out: Path) -> int:
    context = Context(work, quick, budget)
    begin = time.monotonic()
    found: dict[str, Any] = {}
    try:
        found["measurement"] = benchmark.load()(context)
        status: Any = "measured"
    except NotMeasured as reason:
        status, found["reason"] = "not measured", str(reason)
    except Exception as error:
        lines = str(error).splitlines()
        status, found["reason"] = "failed", f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
        found["traceback"] = traceback.format_exc()
    entry = result(benchmark.name, benchmark.title, benchmark.goals, status, seconds=time.monotonic() - begin, **found)
    out.write_text(json.dumps(entry))
    if status == "failed":
        print(found["traceback"], file=sys.stderr)
    # TensorRT and CUDA may crash while an interpreter is torn down; the result is written already.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _named(name: str) -> Benchmark:
    return next(benchmark for benchmark in SUITE if benchmark.name == name)


if __name__ == "__main__":
    sys.exit(main())
