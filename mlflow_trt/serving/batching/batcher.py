"""Joins concurrent calls along the batch dimension: a GPU computes eight rows in little more than the time of one.

Four facts shape it:

* Every size that an engine sees for the first time costs it an execution context and, with TensorRT-RTX, seconds of
  compiling. So it is called with a few sizes only (:mod:`mlflow_trt.plan.batch_sizes`), and rows are padded up to the
  next one by repeating the last.
* Under load no time needs to be waited: while the workers are busy, requests gather by themselves. So by default a
  worker takes what is there and never holds a request back.
* The first request of the queue is always in the next batch. Later ones that fit it may pass others that do not; so
  nobody starves.
* A future's result is set by the worker, under the interpreter's lock. So answers are views of the batch's arrays: a
  copy would hold up every other answer, and most are written out and dropped at once. Who keeps an answer for long
  should copy it, for its view keeps a batch of rows alive.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from ...errors import BusyError, SettingError
from ...plan.api import Engine
from ...plan.batch_sizes import batch_sizes
from ...plan.signature import CallSignature, Shapes
from ..served_model import ServedVersion
from .queue import Answer, QueuedRequest, is_full, take
from .rows import RowShapes, call, check_rows, cut, fitting, next_size

_logger = logging.getLogger(__name__)

_QUICK = 0.002
"""Seconds: an event loop that stands still for longer keeps other clients waiting."""

_KNOWN_SHAPES = 4096
"""How many are remembered; a stream of ever new ones (free image sizes, say) must not fill the memory."""


class Batcher:
    """Takes requests from any thread and runs them on one or several engines, joined where that is possible.

    Args:
        engines: Engines of the same version, one for each GPU; all take from one queue. They stay the caller's to
            close, after this.
        version: What they run; every answer carries it.
        workers: Threads per engine, which is how many calls of it may be under way.
        batching: Whether requests are joined, and padded, at all.
        delay: Seconds, from its arrival, that a request at the queue's head may wait for others to join it while a
            worker is idle. 0: only what is already waiting joins. A request whose deadline comes sooner does not wait.
        max_queue: How many requests may wait; further ones are refused.
        on_batch: Called by a worker after each successful call of an engine, before its answers are handed out, with
            what the whole batch got: ``rows`` equals ``batch``, and ``queued`` is the longest wait of its requests.

    Raises:
        SettingError: A setting can't be honoured, or the engines take different calls.
    """

    sizes: tuple[int, ...]
    """The batch sizes that the engines are called with; none: requests run one by one, as they are."""

    def __init__(
        self,
        engines: Sequence[Engine],
        version: ServedVersion,
        *,
        workers: int = 2,
        batching: bool = True,
        delay: float = 0.0,
        max_queue: int = 256,
        on_batch: Callable[[Answer], None] | None = None,
    ) -> None:
        _check_settings(engines, workers, delay, max_queue)
        interface, profiles = engines[0].interface, engines[0].profiles
        self.sizes = batch_sizes(interface, profiles) if batching else ()
        self._call_signature = CallSignature(interface, profiles)
        self._carrier = next((i for i, t in enumerate(interface.inputs) if t.shape and isinstance(t.shape[0], str)), -1)
        self._sizes_of: dict[RowShapes, tuple[int, ...]] = {}
        self._version = version
        self._delay = delay
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._queue: deque[QueuedRequest] = deque()
        self._work_waits = threading.Condition(self._lock)
        self._alarm_moved = threading.Condition(self._lock)
        self._running = 0
        """Batches."""
        self._inline_engine = engines[0]
        """The engine that callers' own threads run."""
        self._quick: set[Shapes] = set()
        """What it took no more than ``_QUICK`` for the last time."""
        self._alarm = math.inf
        """When the watch will look for passed deadlines next, by time.monotonic()."""
        self._closed = False
        # Daemons, though close() ends them all: a process that fails before it gets there must end, not hang.
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"batcher-{place}.{number}", daemon=True)
            for number in range(workers)
            for place, engine in enumerate(engines)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="batcher-deadlines", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> Future[Answer]:
        """Queues a request.

        Args:
            inputs: Arrays by input name. They must not change before the future is done.
            deadline: By ``time.monotonic()``. Once it has passed, a request that has not begun never will, and fails
                with DeadlineError, while it waits too.
            inline: The caller has nothing else to do: where nothing else waits or runs, and these shapes took no more
                than 2 ms the last time, the request runs in this thread, without a delay. That saves waking another
                thread and being woken by it.

        Returns:
            The future. ``cancel()`` takes the request out of the queue. Its callbacks run in the thread that answers.

        Raises:
            InputError: The inputs do not fit the interface or any optimization profile.
            BusyError: The queue is full, or the batcher was closed.
        """
        call = self._call_signature.check(inputs)
        rows = call.shapes[self._carrier][0] if self._carrier >= 0 else 1
        row_shapes: RowShapes | None = None
        sizes: tuple[int, ...] = ()
        if self.sizes and rows:
            row_shapes = tuple([shape[1:] for shape in call.shapes])
            sizes = self._sizes_for(row_shapes)
        ends = deadline if deadline is not None and deadline < math.inf else math.inf
        request = QueuedRequest(call.arrays, rows, row_shapes, sizes, ends, self._forget)
        with self._lock:
            if self._closed:
                raise _closed()
            alone = inline and not self._queue and not self._running and self._shapes(request) in self._quick
            if alone:
                self._running += 1
            elif len(self._queue) < self._max_queue:
                self._enqueue(request)
            else:
                raise BusyError(
                    f"{len(self._queue)} requests are waiting already.",
                    f"fewer than {self._max_queue}",
                    "send it again a little later",
                )
        if alone:
            request.set_running_or_notify_cancel()
            self._run(self._inline_engine, [request])
        return request

    def close(self, drain: bool = True) -> None:
        """Refuses further requests, ends those that wait, and waits for the workers to end.

        May be called again, and from any thread; from a future's callback it does not wait.

        Args:
            drain: Whether waiting requests are still run; if not, they fail with BusyError. What runs already is
                always finished.
        """
        with self._lock:
            self._closed = True
            dropped = [] if drain else list(self._queue)
            if dropped:
                self._queue.clear()
            self._work_waits.notify_all()
        for request in dropped:
            if request.set_running_or_notify_cancel():
                request.fail(_closed())
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join()
            with self._lock:
                while self._running:  # in a caller's thread
                    self._work_waits.wait()

    def _enqueue(self, request: QueuedRequest) -> None:
        self._queue.append(request)
        if not self._delay or len(self._queue) == 1 or is_full(self._queue):
            self._work_waits.notify()
        if request.deadline < self._alarm:
            self._alarm = request.deadline
            self._alarm_moved.notify()

    def _sizes_for(self, row_shapes: RowShapes) -> tuple[int, ...]:
        sizes = self._sizes_of.get(row_shapes)
        if sizes is None:
            if len(self._sizes_of) >= _KNOWN_SHAPES:
                self._sizes_of.clear()
            sizes = self._sizes_of[row_shapes] = fitting(self._call_signature, self.sizes, row_shapes)
        return sizes

    def _forget(self, request: QueuedRequest) -> None:
        """Takes a cancelled request out of the queue."""
        with self._lock:
            try:
                self._queue.remove(request)
            except ValueError:  # a worker has it, and will see
                return
        request.arrays = ()
        request.set_running_or_notify_cancel()

    def _work(self, engine: Engine) -> None:
        while batch := self._next():
            self._run(engine, [request for request in batch if request.set_running_or_notify_cancel()])
            # What was answered must not stay alive until the next request comes.
            batch.clear()

    def _next(self) -> list[QueuedRequest]:
        """Waits for a batch; none: the batcher was closed and all work is done."""
        with self._lock:
            while True:
                if self._queue:
                    wait = self._held_back()
                    if wait <= 0:
                        break
                    self._work_waits.wait(wait)
                elif self._closed:
                    self._alarm_moved.notify()  # the watch may end too
                    return []
                else:
                    self._work_waits.wait()
            batch = take(self._queue)
            self._running += 1
            if self._queue:
                # Others may be idle: with a delay, not every request wakes one.
                self._work_waits.notify()
            return batch

    def _held_back(self) -> float:
        """Seconds that the queue's head should still wait for others."""
        if not self._delay or self._closed:
            return 0.0
        head = self._queue[0]
        due = head.arrived + self._delay
        return 0.0 if head.deadline <= due or is_full(self._queue) else due - time.monotonic()

    def _run(self, engine: Engine, batch: list[QueuedRequest]) -> None:
        """Answers a batch that counts as running; then it no longer does."""
        try:
            self._answer(engine, batch)
        finally:
            with self._lock:
                self._running -= 1
                if self._closed:
                    self._work_waits.notify_all()  # close() may wait for this

    def _answer(self, engine: Engine, batch: list[QueuedRequest]) -> None:
        """Answers requests that have begun: together, or each alone if that fails, so that only the guilty fail."""
        batch[:] = [request for request in batch if not request.expire()]
        error = self._try(engine, batch) if batch else None
        if error is not None and len(batch) == 1:
            batch[0].fail(error)
        elif error is not None:
            _logger.debug("A batch of %d requests raised %s; each runs alone", len(batch), type(error).__name__)
            error = None
            for alone in [[request] for request in batch]:
                self._answer(engine, alone)
        # An error's traceback holds this frame: with the error or its requests in it, they would keep each other alive.
        error = None
        batch.clear()

    def _try(self, engine: Engine, batch: list[QueuedRequest]) -> BaseException | None:
        """Answers requests together, or returns the error; then none is answered."""
        try:
            begin = time.monotonic()
            rows = sum([request.rows for request in batch])
            size = next_size(batch[0].sizes, rows)
            parts = [request.arrays for request in batch]
            result = call(engine, self._call_signature.names, parts, rows, size)
            computed = time.monotonic() - begin
            if rows != size or len(batch) > 1:
                check_rows(result, size)
        except BaseException as error:
            return error
        if engine is self._inline_engine:
            shapes = [(size, *array.shape[1:]) if batch[0].sizes else array.shape for array in batch[0].arrays]
            self._remember(tuple(shapes), computed <= _QUICK)
        if self._on_batch is not None:
            try:
                whole = result if rows == size else cut(result, 0, rows)
                self._on_batch(Answer(whole, self._version, rows, rows, begin - batch[0].arrived, computed))
            except Exception:
                _logger.exception("on_batch failed")
        start = 0
        for request in batch:
            end = start + request.rows
            outputs = result if request.rows == size else cut(result, start, end)
            request.answer(Answer(outputs, self._version, request.rows, rows, begin - request.arrived, computed))
            start = end
        return None

    def _shapes(self, request: QueuedRequest) -> Shapes:
        """The shapes of a batch of this request alone."""
        if not request.sizes:
            return tuple([array.shape for array in request.arrays])
        size = next_size(request.sizes, request.rows)
        return tuple([(size, *array.shape[1:]) for array in request.arrays])

    def _remember(self, shapes: Shapes, quick: bool) -> None:
        if not quick:
            self._quick.discard(shapes)
        elif shapes not in self._quick:
            if len(self._quick) >= _KNOWN_SHAPES:
                self._quick.clear()
            self._quick.add(shapes)

    def _watch(self) -> None:
        """Fails waiting requests when their deadline passes: all workers may be busy for seconds."""
        while True:
            with self._lock:
                now = time.monotonic()
                expired = [request for request in self._queue if request.deadline <= now]
                for request in expired:
                    self._queue.remove(request)
                self._alarm = min([request.deadline for request in self._queue], default=math.inf)
                if not expired:
                    if self._closed and not self._queue:
                        return
                    # It rings once per earliest deadline, not once per request: most are answered long before.
                    self._alarm_moved.wait(min(self._alarm - now, threading.TIMEOUT_MAX))
            for request in expired:
                if request.set_running_or_notify_cancel():
                    request.expire()
            expired.clear()


def _check_settings(engines: Sequence[Engine], workers: int, delay: float, max_queue: int) -> None:
    if not engines:
        raise SettingError("There is no engine.", "at least one", "load the model on a device")
    for engine in engines[1:]:
        if (engine.interface, engine.profiles) != (engines[0].interface, engines[0].profiles):
            raise SettingError(
                "The engines take different calls: their interfaces or optimization profiles differ.",
                "engines of one plan, so that any of them can run any batch",
                "serve devices that load different plans as models of their own",
            )
    for name, value in (("workers", workers), ("max_queue", max_queue)):
        if value < 1:
            raise SettingError(f"{name} is {value}.", "a whole number of at least 1", "give a larger one")
    if not 0 <= delay < math.inf:
        raise SettingError(f"delay is {delay}.", "seconds, at least 0", "0 joins what is already waiting")


def _closed() -> BusyError:
    return BusyError(
        "The model takes no more requests: another version replaces it, or the server is ending.",
        "a request before that",
        "send it again",
    )
