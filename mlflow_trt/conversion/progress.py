"""The build's progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Listener = Callable[[str, str, int], None]


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

        yield listen
