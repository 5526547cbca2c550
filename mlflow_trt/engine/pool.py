"""The pool: which execution context runs a call, and which contexts are kept.

Three facts shape it (measured on an H100, ResNet-50 fp16):

* A context is not thread-safe, and two that run at once gain a third more images per second, while four lose. So there
  are ``size`` **stream slots**, each with a stream and one block of scratch memory; a call owns one while it runs,
  further calls wait.
* Giving a context another input shape costs 5 ms, six times an inference, and wrong numbers with TensorRT-RTX
  (:mod:`mlflow_trt.engine.runtime_cache`). So a stream slot keeps a **bound context** (context, buffers
  and CUDA graph) for every shape it has seen, as far as the memory limit allows; a bound context keeps its shape.
* 158 of a context's 215 MB are scratch, which contexts that never run at the same time can share. So those of one
  stream slot share its scratch.

Nothing here touches a GPU: a :class:`Factory` makes and destroys what the pool decides on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import DeviceError

_logger = logging.getLogger(__name__)


class OutOfMemory(DeviceError):
    """A GPU allocation failed; the pool makes room and tries once more."""


class PooledContext(Protocol):
    """An execution context that is bound to one shape, with all that it needs to run."""

    @property
    def nbytes(self) -> int:
        """GPU memory that it holds, scratch not counted."""

    def close(self) -> None:
        """Waits for its work and gives its memory back."""


R = TypeVar("R")
L = TypeVar("L", bound=PooledContext)


class Factory(Protocol[R, L]):
    """Makes what the pool keeps."""

    def open_resources(self) -> R:
        """Makes a stream slot's stream and scratch memory."""

    def close_resources(self, resources: R) -> None:
        """Gives them back."""

    def estimate(self, key: Hashable) -> int:
        """Bytes of GPU memory that a new bound context will probably hold."""

    def build(self, resources: R, key: Hashable, old: L | None) -> L:
        """Makes one, out of an old one of the same stream slot if there is one, which is gone even if this fails."""


class StreamSlot(Generic[R, L]):
    """The right to run, with the bound contexts that may run under it. One thread owns it at a time."""

    __slots__ = ("clock", "contexts", "index", "resources", "used")

    def __init__(self, index: int) -> None:
        self.index = index
        self.resources: R | None = None
        self.contexts: dict[Hashable, _Entry[L]] = {}
        self.clock = 0
        self.used = 0
        """Bytes that its bound contexts hold."""


class _Entry(Generic[L]):
    """A bound context, when it was last used by the stream slot's clock, and the bytes that it was counted with."""

    __slots__ = ("bound", "nbytes", "used_at")

    def __init__(self, bound: L, used_at: int, nbytes: int) -> None:
        self.bound = bound
        self.used_at = used_at
        self.nbytes = nbytes


class _Ticket:
    """A waiting call: a closed lock that whoever has a stream slot for it opens."""

    __slots__ = ("lock", "stream_slot")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.stream_slot: Any = None


class Pool(Generic[R, L]):
    """Stream slots and bound contexts under a memory limit.

    Args:
        factory: Makes and destroys them.
        size: How many calls run at once.
        limit: Bytes that all bound contexts together may hold, scratch not counted. Each stream slot keeps at least its
            last one and may use its share, ``limit / size``, whatever the others hold; beyond that, first come, first
            served.
    """

    def __init__(self, factory: Factory[R, L], size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self._factory = factory
        self._share = limit // size
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._slots: list[StreamSlot[R, L]] = [StreamSlot(index) for index in range(size)]
        self._free: list[StreamSlot[R, L]] = list(self._slots)
        self._waiting: deque[_Ticket] = deque()
        self._closed = False

    @property
    def used(self) -> int:
        """Bytes that all bound contexts hold."""
        return sum(stream_slot.used for stream_slot in self._slots)

    @property
    def contexts(self) -> int:
        """How many bound contexts there are."""
        return sum(len(stream_slot.contexts) for stream_slot in self._slots)

    def acquire(self, key: Hashable) -> StreamSlot[R, L]:
        """Waits for a stream slot: the first free one that has a context for this key, or else the first free one.

        The same stream slots are taken again while they are free, so that a single caller fills one of them, not all.

        Raises:
            DeviceError: The engine was closed.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            free = self._free
            if free:
                chosen = 0
                for place, stream_slot in enumerate(free):
                    if key in stream_slot.contexts:
                        chosen = place
                        break
                return free.pop(chosen)
            ticket = _Ticket()
            self._waiting.append(ticket)
        try:
            ticket.lock.acquire()
        except BaseException:  # Ctrl-C: whoever gives up its place must not be handed a stream slot
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            if ticket.stream_slot is not None:
                self.release(ticket.stream_slot)
            raise
        if ticket.stream_slot is None:
            raise _closed()
        stream_slot = ticket.stream_slot
        return stream_slot  # type: ignore[no-any-return]

    def release(self, stream_slot: StreamSlot[R, L]) -> None:
        """Gives a stream slot to the call that has waited longest, or back."""
        if stream_slot.used > self._share and self.used > self.limit:
            self._trim(stream_slot)
        with self._lock:
            if self._waiting:
                ticket = self._waiting.popleft()
                ticket.stream_slot = stream_slot
                ticket.lock.release()
                return
            place = 0
            while place < len(self._free) and self._free[place].index < stream_slot.index:
                place += 1
            self._free.insert(place, stream_slot)
            if self._closed:
                self._idle.notify_all()

    def find(self, stream_slot: StreamSlot[R, L], key: Hashable) -> L | None:
        """Returns the stream slot's context for a key, if it has one. The stream slot must be the caller's."""
        entry = stream_slot.contexts.get(key)
        if entry is None:
            return None
        stream_slot.clock = entry.used_at = stream_slot.clock + 1
        return entry.bound

    def open(self, stream_slot: StreamSlot[R, L], key: Hashable) -> L:
        """Makes a context for a key that the stream slot has none for. The stream slot must be the caller's.

        Where the memory is used up, its least recently used one is made over: it takes the new shape where contexts may
        do that, and goes where they may not.

        Raises:
            DeviceError: The GPU's memory does not suffice even after every context that could go has gone. The pool
                stays usable.
        """
        need = self._factory.estimate(key)
        fits = self.used + need <= self.limit or stream_slot.used + need <= self._share
        try:
            bound = self._build(stream_slot, key, None if fits else self._take_oldest(stream_slot))
        except OutOfMemory as error:
            _logger.debug("Out of GPU memory; making room and trying again: %s", error)
            self._make_room(stream_slot)
            bound = self._build(stream_slot, key, None)
        stream_slot.clock += 1
        stream_slot.contexts[key] = _Entry(bound, stream_slot.clock, 0)
        self.weigh(stream_slot, key)
        return bound

    def weigh(self, stream_slot: StreamSlot[R, L], key: Hashable) -> None:
        """Counts a context's memory anew, which its first run may have changed; closes older ones if it is too much."""
        entry = stream_slot.contexts[key]
        nbytes = entry.bound.nbytes
        stream_slot.used += nbytes - entry.nbytes
        entry.nbytes = nbytes
        self._trim(stream_slot)

    def rename(self, stream_slot: StreamSlot[R, L], key: Hashable, other: Hashable) -> None:
        """Lets the stream slot's context for a key serve another one; it may be gone, where memory was needed."""
        if (entry := stream_slot.contexts.pop(key, None)) is not None:
            stream_slot.contexts[other] = entry

    def discard(self, stream_slot: StreamSlot[R, L], key: Hashable) -> None:
        """Closes the stream slot's bound context for a key: it failed, and nobody knows what state it is in."""
        entry = stream_slot.contexts.pop(key, None)
        if entry is not None:
            stream_slot.used -= entry.nbytes
            entry.bound.close()

    def close(self) -> None:
        """Waits for running calls, refuses waiting and later ones, and gives everything back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for ticket in self._waiting:
                ticket.lock.release()
            self._waiting.clear()
            while len(self._free) < self.size:
                self._idle.wait()
        for stream_slot in self._slots:
            self._clear(stream_slot)
            if stream_slot.resources is not None:
                self._factory.close_resources(stream_slot.resources)
                stream_slot.resources = None

    def _build(self, stream_slot: StreamSlot[R, L], key: Hashable, old: L | None) -> L:
        if stream_slot.resources is None:
            stream_slot.resources = self._factory.open_resources()
        return self._factory.build(stream_slot.resources, key, old)

    def _take_oldest(self, stream_slot: StreamSlot[R, L]) -> L | None:
        if not stream_slot.contexts:
            return None
        entry = stream_slot.contexts.pop(min(stream_slot.contexts, key=lambda key: stream_slot.contexts[key].used_at))
        stream_slot.used -= entry.nbytes
        return entry.bound

    def _trim(self, stream_slot: StreamSlot[R, L]) -> None:
        """Closes the stream slot's oldest contexts while the pool is over its limit and it over its share."""
        while len(stream_slot.contexts) > 1 and stream_slot.used > self._share and self.used > self.limit:
            bound = self._take_oldest(stream_slot)
            if bound is not None:
                bound.close()

    def _make_room(self, stream_slot: StreamSlot[R, L]) -> None:
        """Closes all bound contexts of this stream slot and of those that nobody uses."""
        self._clear(stream_slot)
        with self._lock:
            # Taken out of the list, so that no call gets them meanwhile.
            idle, self._free = self._free, []
        for other in idle:
            self._clear(other)
        for other in idle:
            self.release(other)

    def _clear(self, stream_slot: StreamSlot[R, L]) -> None:
        while (bound := self._take_oldest(stream_slot)) is not None:
            bound.close()


def _closed() -> DeviceError:
    return DeviceError("The engine was closed.", "an open one", "load the model again")
