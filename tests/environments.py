"""Environments that hold exactly what some requirements lead to, linked from this one: nothing is downloaded."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement


def make(folder: Path, requirements: Iterable[str]) -> Path:
    """Makes a virtual environment and returns its Python; skips the test where a distribution is not installed here."""
    try:
        needed = closure(requirements)
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"needs {error}, installed as a package")
    venv.create(folder, symlinks=True)
    site = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    files = {file: Path(str(file.locate())) for distribution in needed for file in distribution.files or ()}
    for file, original in files.items():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(original)
    return folder / "bin/python"


def closure(requirements: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that these requirements lead to."""
    found = []
    waiting = [(Requirement(line), "") for line in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if (requirement.marker and not requirement.marker.evaluate({"extra": extra})) or str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = importlib.metadata.distribution(requirement.name)
        found.append(distribution)
        for further in distribution.requires or ():
            waiting += [(Requirement(further), inner) for inner in ("", *requirement.extras)]
    return found


def clean() -> dict[str, str]:
    """This process's environment, without folders where Python would find more."""
    return {**os.environ, "PYTHONPATH": ""}
