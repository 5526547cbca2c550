"""What child processes of the tests do: they promote, one to be killed, or several at once.

Forked from a server process that has imported MLflow already, so that a child costs a tenth of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["mlflow", "mlflow_trt.registry.promotion", "mlflow.store.artifact.mlflow_artifacts_repo"]
)

NOT_PROMOTED = 3
"""Exit status of a child that was refused or lost."""


def start(target: Any, uri: str, *arguments: Any) -> Any:
    """Starts a child that is a client of ``uri``."""
    env = {name: os.environ[name] for name in ("MLFLOW_TRT_CACHE",)}
    # MLflow's own default is 7. Its server on PostgreSQL answers 503 now and then when several write at once.
    env |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
    process = CONTEXT.Process(target=_run, args=(target, env, *arguments), daemon=True)
    process.start()
    return process


def _run(target: Any, env: Mapping[str, str], *arguments: Any) -> None:
    os.environ.update(env)
    import mlflow

    mlflow.set_tracking_uri(env["MLFLOW_TRACKING_URI"])
    target(*arguments)


def promote(name: str, version: str, alias: str) -> None:
    import mlflow_trt

    sys.exit(0 if mlflow_trt.promote(name, version, alias, gates=[]).ok else NOT_PROMOTED)


def rollback(name: str, alias: str) -> None:
    import mlflow_trt

    mlflow_trt.rollback(name, alias)


def race(name: str, version: str, rounds: int, barrier: Any, queue: Any, back: bool) -> None:
    """Promotes (or rolls back) at the same moment as others, once for each round's alias."""
    import mlflow_trt

    def wait_for_the_others(context: Any) -> bool:
        barrier.wait(60)
        return True

    for number in range(rounds):
        alias = f"race-{number}"
        try:
            if back:
                barrier.wait(60)
                report = mlflow_trt.rollback(name, alias)
            else:
                report = mlflow_trt.promote(name, version, alias, gates=[wait_for_the_others])
            queue.put((alias, version, report.outcome, report.version, report.reasons))
        except Exception as error:
            queue.put((alias, version, "error", "", (f"{type(error).__name__}: {error}",)))
