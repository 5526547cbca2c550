"""Real servers that several modules look at, each started once: what operators see of them, and gRPC beside HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .running import Served


@pytest.fixture(scope="package")
def plus_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model: x · 2 + 1, (batch, 4) → (batch, 3)."""
    pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
    import mlflow_trt

    from .registered import plan

    folder = tmp_path_factory.mktemp("plus-one") / "plus1"
    mlflow_trt.save_model(plan(1.0), folder)
    return folder


@pytest.fixture(scope="package")
def half_loaded(plus_one: Path) -> Iterator[Served]:
    """One model answers and one can't be loaded; gRPC's own library says all that it can."""
    from .running import served

    models = [f"--model=m={plus_one}", f"--model=bad={plus_one.parent / 'nothing'}"]
    noisy = {"GRPC_VERBOSITY": "debug", "GRPC_TRACE": "http", "PYTHONWARNINGS": "always"}
    with served(plus_one.parent, *models, "--exit-on-error", "false", grpc=True, env=noisy) as found:
        yield found


@pytest.fixture(scope="package")
def locked(plus_one: Path) -> Iterator[Served]:
    """A token, HTTP in a process of its own, and no lines for what is answered well."""
    from .running import TOKEN, served

    token = plus_one.parent / "token"
    token.write_text(TOKEN)
    options = ["--token-file", str(token), "--http-processes", "1", "--no-access-log"]
    with served(plus_one.parent, f"--model=m={plus_one}", *options, grpc=True) as found:
        yield found
