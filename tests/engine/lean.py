"""NVIDIA's lean runtime of full TensorRT, from PyPI, beside the environment: two releases can't be in one.

Its wheels (about 100 MB a release) are fetched once a machine, into the user's cache; tests import them in processes of
their own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

RELEASES = ("10.15.1.29", "11.4.0.106")
"""The oldest and the newest of full TensorRT that is supported."""

_ROOT = Path(__file__).parents[2]


def folder(release: str) -> Path:
    """Where a release's packages are; skips the test where they can't be had."""
    filelock = pytest.importorskip("filelock")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-trt-tests"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    found = cache / f"tensorrt-lean-{release}-{python}"
    refused = cache / f"{found.name}.{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}.refused"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{found}.lock"):
        if not found.is_dir() and not refused.exists():
            _install(release, found, refused)
    if not found.is_dir():
        pytest.skip(f"PyPI gives no tensorrt-lean {release} for {python}: {refused.read_text()}")
    return found


def _install(release: str, found: Path, refused: Path) -> None:
    packages = [f"tensorrt-lean-cu13-{part}=={release}" for part in ("bindings", "libs")]
    made = found.with_suffix(f".{os.getpid()}.part")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
    try:
        done = subprocess.run([*command, "--target", made, *packages], capture_output=True, text=True, timeout=300)
        failure = done.stderr.strip()[-300:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = "no answer in 300 s"
    if failure:
        refused.write_text(failure)  # so that the other tests of this run need not wait as long
    else:
        made.rename(found)


def run(release: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where a release is installed, with this package and the tests' helpers."""
    path = [str(p) for p in (folder(release), _ROOT, _ROOT / "tests", Path(__file__).parent)]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)


def output(release: str, code: str) -> str:
    """What such a process prints; fails where it fails."""
    done = run(release, code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
