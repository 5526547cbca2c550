"""NVIDIA's lean runtime of full TensorRT, from PyPI (about 100 MB a release)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import wheels

RELEASES = ("10.15.1.29", "11.4.0.106")
"""The oldest and the newest of full TensorRT that is supported."""


def folder(release: str) -> Path:
    """Where a release's packages are; skips the test where they can't be had."""
    packages = [f"tensorrt-lean-cu13-{part}=={release}" for part in ("bindings", "libs")]
    return wheels.folder(f"tensorrt-lean-{release}", packages)


def run(release: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where a release is installed, with this package and the tests' helpers."""
    return wheels.run([folder(release), Path(__file__).parent], code)


def output(release: str, code: str) -> str:
    """What such a process prints; fails where it fails."""
    return wheels.output(run(release, code))
