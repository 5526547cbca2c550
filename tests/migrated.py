"""Empty MLflow databases, migrated once for all workers and then copied: MLflow migrates a new one for two seconds."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EMPTY = "MLFLOW_TRT_TESTS_DATABASE"
"""Environment variable: where the empty database is, or will be."""


@contextlib.contextmanager
def databases(shared: Path) -> Iterator[None]:
    """MLflow in this process finds each new ``mlflow.db`` migrated already.

    Args:
        shared: A folder that all workers share.
    """
    if importlib.util.find_spec("sqlalchemy") is None:  # mlflow-skinny alone
        yield
        return
    from sqlalchemy import Engine, event

    os.environ[_EMPTY] = str(shared / "empty.db")

    def migrated(dialect: Any, record: Any, arguments: list[Any], options: Any) -> None:
        if dialect.name == "sqlite" and (path := Path(arguments[0])).name == "mlflow.db" and not path.exists():
            copy(path)

    event.listen(Engine, "do_connect", migrated)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", migrated)
        del os.environ[_EMPTY]


def copy(path: Path) -> None:
    """Writes a database that has MLflow's tables and nothing in them."""
    empty = Path(os.environ[_EMPTY])
    _make(empty)
    shutil.copyfile(empty, path)


def _make(empty: Path) -> None:
    from filelock import FileLock

    if empty.exists():
        return
    with FileLock(f"{empty}.lock"):
        if not empty.exists():
            from mlflow.store.db.utils import _initialize_tables
            from sqlalchemy import create_engine

            half = empty.with_suffix(".half")
            engine = create_engine(f"sqlite:///{half}")
            _initialize_tables(engine)
            engine.dispose()
            half.rename(empty)
