"""Requests that wait for an engine, and which of them run together."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ...errors import DeadlineError, DeviceError
from ...plan.api import Result
from ..served_model import ServedVersion
from .rows import RowShapes

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one request got, and how."""

    outputs: Result
    """Its own rows; views of the batch's arrays where it did not run alone."""
    version: ServedVersion
    """That answered."""
    rows: int
    """Its own; 1 where the model has no batch dimension."""
    batch: int
    """Rows that ran together, padding not counted."""
    queued: float
    """Seconds from its arrival to the start of its batch."""
    computed: float
    """Seconds that the batch took: joining its rows and running the engine."""


class QueuedRequest(Future[Answer]):
    """A waiting request, and the future that its caller holds. Whoever takes it out of the queue settles it."""

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        rows: int,
        row_shapes: RowShapes | None,
        sizes: tuple[int, ...],
        deadline: float,
        forget: Callable[[QueuedRequest], None],
    ) -> None:
        super().__init__()
        self.arrays = arrays
        self.rows = rows
        self.row_shapes = row_shapes
        self.sizes = sizes
        """Batch sizes that it may be part of; none: it runs alone, as it is."""
        self.deadline = deadline
        self.arrived = time.monotonic()
        self._forget = forget

    def cancel(self) -> bool:
        """Cancels the request if it has not begun, and gives its place in the queue free."""
        cancelled = super().cancel()
        if cancelled:
            self._forget(self)
        return cancelled

    def expire(self) -> bool:
        """Fails if the deadline has passed, and answers whether it has."""
        now = time.monotonic()
        if now < self.deadline:
            return False
        self.fail(
            DeadlineError(
                f"The request's time was over after {now - self.arrived:.3f} s, before its turn came.",
                "an answer within the time that it was given",
                "give it more time, or send fewer at once",
            )
        )
        return True

    def answer(self, answer: Answer) -> None:
        """Gives the caller the answer."""
        self.arrays = ()
        self.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Gives the caller the error."""
        self.arrays = ()
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
            # Raised again in an event loop, SystemExit would end it, and StopIteration is refused there.
            _logger.error("The engine raised %s", type(error).__name__, exc_info=error)
            wrapped = DeviceError(f"The engine raised {type(error).__name__}.", "an answer", "see the server's log")
            wrapped.__cause__ = error
            error = wrapped
        self.set_exception(error)


def take(queue: deque[QueuedRequest]) -> list[QueuedRequest]:
    """Takes the head out of a queue, and whatever may join it, in order; the others stay in theirs."""
    head = queue.popleft()
    batch, rows = [head], head.rows
    most = head.sizes[-1] if head.sizes else 0
    passed: list[QueuedRequest] = []
    while queue and rows < most:
        request = queue.popleft()
        if request.row_shapes == head.row_shapes and rows + request.rows <= most:
            batch.append(request)
            rows += request.rows
        else:
            passed.append(request)
    queue.extendleft(reversed(passed))
    return batch


def is_full(queue: deque[QueuedRequest]) -> bool:
    """Whether the head need not wait for others: enough are there, or none can join it."""
    head = queue[0]
    most = head.sizes[-1] if head.sizes else 0
    rows = 0
    for request in queue:
        if request.row_shapes == head.row_shapes:
            rows += request.rows
        if rows >= most:
            return True
    return False
