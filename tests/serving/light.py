"""``mlflow-trt serve`` as it is, but for its models: these cost nothing to load, and answer as their URI says.

What is tested with it is how requests come in and answers go out; loading PyTorch would take most of the time.
As a program it takes the arguments of ``mlflow-trt serve``; a model is ``NAME=/light/MILLISECONDS/WIDTH``: each answer
takes that long and has so many numbers for each row of the input ``x``, all of them the row's sum. It needs Python's
``-P``: the folders ``http`` and ``grpc`` beside it are not the modules of these names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


class Light:
    """A stand-in for :class:`mlflow_trt.serving.versions.served.Model`."""

    registered_model = None
    failure = None

    def __init__(self, name: str, uri: str, options: Any, *, interval: float, on_batch: Any) -> None:
        from interfaces import interface, tensor

        from mlflow_trt.serving.served_model import ServedVersion

        _, _, milliseconds, width = uri.split("/")
        self.name = name
        self._seconds = int(milliseconds) / 1000
        self._width = int(width)
        face = interface([tensor("x", ("n", 4))], [tensor("y", ("n", self._width))])
        self.current = ServedVersion(uri, "1", "stand-in", face, ())

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def status(self) -> dict[str, Any]:
        common = {"name": self.name, "state": "ready", "version": "1", "uri": self.current.uri}
        return {**common, "waiting": 0, "swaps": 0, "failures": 0}

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> Future[Any]:
        future: Future[Any] = Future()
        sums = inputs["x"].sum(axis=1, keepdims=True)
        if self._seconds:
            future.set_running_or_notify_cancel()
            threading.Timer(self._seconds, self._answer, (future, sums)).start()
        else:
            self._answer(future, sums)
        return future

    def _answer(self, future: Future[Any], sums: np.ndarray) -> None:
        from mlflow_trt.plan.api import Result
        from mlflow_trt.serving.batching.queue import Answer

        outputs = {"y": np.repeat(sums, self._width, axis=1)}
        future.set_result(Answer(Result(outputs, "reference"), self.current, len(sums), len(sums), 0.0, self._seconds))


@contextlib.contextmanager
def light(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str] = {},
    grpc: bool = False,
    through: Sequence[str] = (),
) -> Iterator[Any]:
    """Starts one and waits until it is ready; see :func:`~.running.served`.

    Args:
        folder: Where its log goes.
        arguments: Those of ``mlflow-trt serve``; without a model: one that answers at once.
        env: Environment variables.
        grpc: Whether it listens for gRPC too.
        through: A command that runs it.
    """
    import servers

    from .running import Served, wait

    port, grpc_port = servers._free_ports(2)
    log = folder / f"light-{port}.log"
    options = ["--port", str(port), *(["--grpc-port", str(grpc_port)] if grpc else [])]
    if not any(argument.startswith("--model") for argument in arguments):
        options.append("--model=m=/light/0/1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*through, sys.executable, "-P", __file__, "serve", "--backend", "reference", *options, *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
            start_new_session=True,
        )
    try:
        wait(port, process, log, 180)
        yield Served(port, grpc_port, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Any, seconds: float = 20) -> Any:
    """Waits until a condition is true, and returns what it answered."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    from mlflow_trt.cli.main import main
    from mlflow_trt.serving import server

    server.Model = Light  # type: ignore[assignment, misc]
    main()
