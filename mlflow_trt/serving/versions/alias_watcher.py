"""Which version a URI means now: an alias is looked up again and again, and a registry that is away changes nothing.

``models:/name@alias`` and ``models:/name/latest`` are watched. A version's number, a run, a folder or another store
always means the same; a stage (``models:/name/Production``), which MLflow has deprecated, is looked up once.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from ... import model_uri
from ...errors import StoreError, TrtError
from ...model_uri import ModelUri
from ...registry.ledger import registry_errors

PATIENCE = 10.0
"""Seconds after which a registry that has not answered counts as away."""

Outcome = Union[str, TrtError]


@dataclass(frozen=True)
class WatchedAlias:
    """What the registry is asked for."""

    name: str
    """The registered model's."""
    alias: str
    """``"latest"``: its newest version, as MLflow has it."""


def watched_alias(uri: str) -> WatchedAlias | None:
    """The alias that decides what a URI means; None: it always means the same version."""
    read = model_uri.parse(uri)
    if read is None or read.name is None or read.registry or not (read.alias or read.newest):
        return None
    return WatchedAlias(read.name, read.alias or "latest")


def resolve(target: WatchedAlias) -> str:
    """Asks the active registry which version an alias names now.

    Returns:
        ``models:/name/3``.

    Raises:
        StoreError: The registry can't be read, or has no such alias.
    """
    with registry_errors(
        f"{target.name}@{target.alias} can't be read from the registry",
        "check the registry, MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI, and that the alias is set",
    ):
        from mlflow import MlflowClient

        version = MlflowClient().get_model_version_by_alias(target.name, target.alias)
    return str(ModelUri(target.name, version=version.version))


class AliasWatcher:
    """Looks at something in the background, every few seconds and when asked to.

    One thread keeps the time, and each look has a thread of its own: a registry that hangs keeps neither
    :meth:`close` nor a report of that waiting. There is one look at a time, however long it takes.

    Args:
        look: What is looked up; raises a TrtError if it can't.
        report: Called with what was found or the error, after every look, from the watcher's thread. Also, with an
            error, when a look has taken ``patience`` seconds.
        interval: Seconds from the end of a look to the next.
        patience: Seconds.
    """

    def __init__(
        self,
        look: Callable[[], str],
        report: Callable[[Outcome], None],
        interval: float,
        patience: float = PATIENCE,
    ) -> None:
        self._look = look
        self._report = report
        self._interval = interval
        self._patience = patience
        self._closed = False
        # What the thread waits for: somebody who asks (and is told by the event), an outcome, or the end.
        self._inbox: queue.SimpleQueue[threading.Event | Outcome | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="registry-watch", daemon=True)

    def start(self) -> None:
        """Looks at once, and begins to watch."""
        self._thread.start()

    def refresh(self) -> None:
        """Has it look at once; returns before it does."""
        self._inbox.put(threading.Event())

    def fresh(self, timeout: float) -> bool:
        """Has it look at once, and waits until that was reported; False: not in that time, or it was closed."""
        reported = threading.Event()
        self._inbox.put(reported)
        return not self._closed and reported.wait(timeout) and not self._closed

    def close(self) -> None:
        """Ends the watcher; whatever a look under way finds is not reported any more."""
        self._closed = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        asking: list[threading.Event] = []
        answered: list[threading.Event] = []
        looking = False
        due = 0.0
        while True:
            try:
                message = self._inbox.get(timeout=min(max(due - time.monotonic(), 0), threading.TIMEOUT_MAX))
            except queue.Empty:
                if looking:
                    self._report(_no_answer(self._patience))
                    due = math.inf
                    continue
            else:
                if message is None:
                    break
                if isinstance(message, threading.Event):
                    asking.append(message)
                else:
                    self._report(message)
                    looking, due = False, time.monotonic() + self._interval
                    for event in answered:
                        event.set()
            # Who asks while a look is under way wants another one: that one may have been too early.
            if not looking and (asking or time.monotonic() >= due):
                answered, asking = asking, []
                looking, due = True, time.monotonic() + self._patience
                threading.Thread(target=self._answer, name="registry-look", daemon=True).start()
        for event in (*asking, *answered):
            event.set()

    def _answer(self) -> None:
        try:
            self._inbox.put(self._look())
        except TrtError as error:
            self._inbox.put(error)


def _no_answer(seconds: float) -> StoreError:
    return StoreError(
        f"The registry has not answered for {seconds:g} s.",
        "an answer",
        "check the registry, and the network between it and this machine",
    )
