"""Packages of NVIDIA's from PyPI beside the environment: two releases can't be in one.

They are fetched once a machine, into the user's cache; tests import them in processes of their own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def folder(name: str, packages: Sequence[str]) -> Path:
    """Where packages are; skips the test where they can't be had.

    Args:
        name: What they are called together, for the folder.
        packages: As pip takes them.
    """
    filelock = pytest.importorskip("filelock")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-trt-tests"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    there = cache / f"{name}-{python}"
    refused = cache / f"{there.name}.{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}.refused"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{there}.lock"):
        if not there.is_dir() and not refused.exists():
            _install(packages, there, refused)
    if not there.is_dir():
        pytest.skip(f"PyPI gives no {name} for {python}: {refused.read_text()}")
    return there


def _install(packages: Sequence[str], there: Path, refused: Path) -> None:
    made = there.with_suffix(f".{os.getpid()}.part")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
    try:
        done = subprocess.run([*command, "--target", made, *packages], capture_output=True, text=True, timeout=300)
        failure = done.stderr.strip()[-300:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = "no answer in 300 s"
    if failure:
        refused.write_text(failure)  # so that the other tests of this run need not wait as long
    else:
        made.rename(there)


def run(folders: Sequence[Path], code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where packages are installed, with this package and the tests' helpers.

    Args:
        folders: Where modules are looked up first.
        code: What to run.
        **environment: Variables of the process, beside this one's.
    """
    path = [str(p) for p in (*folders, _ROOT, _ROOT / "tests")]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)


def output(done: subprocess.CompletedProcess[str]) -> str:
    """What a process printed; fails where it failed."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
