"""What a failed save or log takes back: the folder, the run it started, the logged model it had MLflow make."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import mlflow
from mlflow.exceptions import MlflowException

from ..errors import StoreError, TrtError

_logger = logging.getLogger(__name__)


class RemembersModel(Protocol):
    """Knows which logged model MLflow made; ``Model.log`` hides it when it fails."""

    model_id: str | None


@contextmanager
def nothing_left_behind(folder: Path, keep_folder: bool) -> Iterator[None]:
    """Empties or removes a folder that could not be filled."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if keep_folder:
            folder.mkdir(parents=True, exist_ok=True)
        raise


@contextmanager
def own_run(run_id: str | None) -> Iterator[str]:
    """The run to log to: the one named, the active one, or a new one that goes again when logging fails."""
    active = mlflow.active_run()
    if run_id or active:
        yield run_id or cast(mlflow.ActiveRun, active).info.run_id
        return
    run_id = mlflow.start_run().info.run_id
    try:
        yield run_id
    except BaseException:
        with _best_effort(f"remove the run {run_id}"):
            mlflow.end_run("FAILED")
            mlflow.delete_run(run_id)
        raise
    mlflow.end_run()


@contextmanager
def deleted_on_failure(flavor: RemembersModel, given: str | None) -> Iterator[None]:
    """Deletes the logged model that MLflow made if anything fails, unless the caller had made it."""
    try:
        yield
    except BaseException as error:
        unfinished = flavor.model_id if flavor.model_id != given else None
        if unfinished:
            with _best_effort(f"delete the unfinished logged model {unfinished}"):
                mlflow.MlflowClient().delete_logged_model(unfinished)
        if isinstance(error, TrtError) or not isinstance(error, Exception):
            raise
        if isinstance(error, MlflowException) and not flavor.model_id:
            raise  # MLflow's own refusal of an argument, in its own words
        raise StoreError(
            f"Logging broke off: {type(error).__name__}: {str(error)[:500]}",
            "a tracking server and an artifact store that take the whole model",
            "log it again" + (f"; the unfinished logged model {unfinished} was deleted" if unfinished else ""),
        ) from error


@contextmanager
def _best_effort(what: str) -> Iterator[None]:
    """Cleaning up after a failure must not hide the failure, least of all when the server is what failed."""
    try:
        yield
    except Exception as error:
        _logger.warning("Could not %s: %s", what, error)
