"""How far a long job is: on a terminal, in the log, and as seconds for each step."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_logger = logging.getLogger(__name__)

T = TypeVar("T")

Listener = Callable[[str, str, int], None]
"""Is told ``("start", phase, steps)``, ``("step", phase, done)``, ``("finish", phase, 0)``, ``("note", text, 0)``."""


class Steps:
    """How long each step of a longer job took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times the step of this name."""
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 3)
        _logger.info("%s took %.1f s", name, self.seconds[name])


@contextlib.contextmanager
def shown() -> Iterator[Listener | None]:
    """Yields a listener that draws bars on stderr, or None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(event: str, phase: str, steps: int) -> None:
            if event == "start":
                tasks[phase] = bars.add_task(phase, total=steps)
            elif event == "step" and phase in tasks:
                bars.update(tasks[phase], completed=steps)
            elif event == "finish" and phase in tasks:
                bars.remove_task(tasks.pop(phase))
            elif event == "note":
                bars.console.print(phase, markup=False, highlight=False)

        yield listen


def note(listener: Listener | None, text: str) -> None:
    """Says something in the log and, where there is a terminal, on it."""
    _logger.info("%s", text)
    if listener is not None:
        listener("note", text, 0)


def counted(listener: Listener | None, phase: str, items: Sequence[T]) -> Iterator[T]:
    """Yields items, and tells the listener how many are done."""
    if listener is not None:
        listener("start", phase, len(items))
    for done, item in enumerate(items, 1):
        yield item
        if listener is not None:
            listener("step", phase, done)
    if listener is not None:
        listener("finish", phase, 0)
