"""Packages that can't live in this environment, because they pin others that it needs: each set in one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def environment(*packages: str, dependencies: bool = False) -> Path:
    """Returns an environment with these packages; fetched once for a user.

    Args:
        packages: Each with its version, ``numpy==1.26.4``; the first names the folder.
        dependencies: Whether what they depend on comes along.

    Returns:
        The environment's folder: ``bin/python``, and the packages where :func:`packages_of` says.

    Raises:
        RuntimeError: They can't be had here: no package index, or none for this system and Python.
    """
    from filelock import FileLock

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "mlflow-trt-tools"
    folder = base / f"{packages[0].replace('==', '-')}-{'complete-' * dependencies}{PYTHON}"
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        stamp = folder / "installed"
        if not stamp.exists() or stamp.read_text() != "\n".join(packages):
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, packages, dependencies)
            stamp.write_text("\n".join(packages))
    return folder


def packages_of(folder: Path) -> Path:
    """Where an environment's packages are."""
    return folder / "lib" / PYTHON / "site-packages"


def _install(folder: Path, packages: tuple[str, ...], dependencies: bool) -> None:
    venv.create(folder, symlinks=True)
    pip = ["pip", "install", "--quiet", "--no-compile", "--only-binary=:all:", *([] if dependencies else ["--no-deps"])]
    command = [sys.executable, "-m", *pip, "--target", str(packages_of(folder)), *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{', '.join(packages)} can't be had here: {''.join(why)[:300]}")
