"""Describes the machine, as far as it decides the numbers; says nothing of whose machine it is."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlflow_trt.plan.host import probe

PACKAGES = (
    "mlflow-trt",
    "mlflow",
    "mlflow-skinny",
    "numpy",
    "torch",
    "torch-tensorrt-rtx",
    "torch-tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt",
    "cuda-core",
    "cuda-bindings",
    "onnxruntime",
    "onnxruntime-gpu",
)


def describe() -> dict[str, Any]:
    """Returns GPU, driver, CUDA, CPU, memory and versions; None where there is none or it is not known."""
    host = probe()
    return {
        "gpu": host.gpu,
        "gpu_memory": _nvidia_smi("memory.total"),
        "gpu_clock": _nvidia_smi("clocks.max.sm"),
        "compute_capability": host.capability,
        "driver": host.driver,
        "cuda": host.cuda,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": _ram_gib(),
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def introduction(command: str) -> str:
    """The first lines of a results file: what is run, on what machine, and how busy that is at the moment."""
    found = describe()
    cores = f"{found['cores']} cores, {found['cpu']}, {found['ram_gib']} GiB, {found['gpu'] or 'no GPU'}"
    nice = os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0
    load = f"load before: {found['load_before']}" + (f" (this ran with nice {nice})" if nice else "")
    return f"`{command}`\n\n{cores}; {found['os']}, Python {found['python']}; {load}.\n"


def label(machine: dict[str, Any]) -> str:
    """A short name for files: the GPU, or ``cpu-2core``."""
    name = machine["gpu"] or f"cpu-{machine['cores']}core"
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return platform.processor() or None
    return found.group(1).strip() if found else platform.machine()


def _ram_gib() -> float | None:
    try:
        found = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return round(int(found.group(1)) / 2**20, 1) if found else None


def _nvidia_smi(field: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
