"""The pool: which execution context runs a call, and which contexts are kept.

Three facts shape it (measured on an H100, ResNet-50 fp16):

* A context is not thread-safe, and two that run at once gain a third more images per second, while four lose. So there
  are ``size`` **slots**, each with a stream and one block of scratch memory; a call owns a slot while it runs, further
  calls wait.
* Giving a context another input shape costs 5 ms, six times an inference, and wrong numbers with TensorRT-RTX
  (:mod:`mlflow_trt.engine.runtime_cache`). So a slot keeps a **lane** (context, buffers
  and CUDA graph) for every shape it has seen, as far as the memory limit allows; a lane keeps its shape.
* 158 of a context's 215 MB are scratch, which contexts that never run at the same time can share. So the lanes of one
  slot share its scratch.

Nothing here touches a GPU: a :class:`Workshop` makes and destroys what the pool decides on.
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


class Lane(Protocol):
    """An execution context that is bound to one shape, with all that it needs to run."""

    @property
    def nbytes(self) -> int:
        """GPU memory that it holds, scratch not counted."""

    def close(self) -> None:
        """Waits for its work and gives its memory back."""


R = TypeVar("R")
L = TypeVar("L", bound=Lane)


class Workshop(Protocol[R, L]):
    """Makes what the pool keeps."""

    def open_slot(self) -> R:
        """Makes a slot's stream and scratch memory."""

    def close_slot(self, resource: R) -> None:
        """Gives them back."""

    def estimate(self, key: Hashable) -> int:
        """Bytes of GPU memory that a new lane will probably hold."""

    def build(self, resource: R, key: Hashable, old: L | None) -> L:
        """Makes a lane, out of an old one of the same slot if there is one; the old one is gone even if this fails."""


class Slot(Generic[R, L]):
    """The right to run, with the lanes that may run under it. One thread owns it at a time."""

    __slots__ = ("clock", "index", "lanes", "resource", "used")

    def __init__(self, index: int) -> None:
        self.index = index
        self.resource: R | None = None
        self.lanes: dict[Hashable, _Entry[L]] = {}
        self.clock = 0
        self.used = 0
        """Bytes that its lanes hold."""


class _Entry(Generic[L]):
    """A lane, when it was last used by the slot's clock, and the bytes that it was counted with."""

    __slots__ = ("lane", "nbytes", "used_at")

    def __init__(self, lane: L, used_at: int, nbytes: int) -> None:
        self.lane = lane
        self.used_at = used_at
        self.nbytes = nbytes


class _Ticket:
    """A waiting call: a closed lock that whoever has a slot for it opens."""

    __slots__ = ("lock", "slot")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.slot: Any = None


class Pool(Generic[R, L]):
    """Slots and lanes under a memory limit.

    Args:
        workshop: Makes and destroys them.
        size: How many calls run at once.
        limit: Bytes that all lanes together may hold, scratch not counted. Each slot keeps at least its last lane and
            may use its share, ``limit / size``, whatever the others hold; beyond that, first come, first served.
    """

    def __init__(self, workshop: Workshop[R, L], size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self._workshop = workshop
        self._share = limit // size
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._slots: list[Slot[R, L]] = [Slot(index) for index in range(size)]
        self._free: list[Slot[R, L]] = list(self._slots)
        self._waiting: deque[_Ticket] = deque()
        self._closed = False

    @property
    def used(self) -> int:
        """Bytes that all lanes hold."""
        return sum(slot.used for slot in self._slots)

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return sum(len(slot.lanes) for slot in self._slots)

    def acquire(self, key: Hashable) -> Slot[R, L]:
        """Waits for a slot: the first free one that has a lane for this key, or else the first free one.

        The same slots are taken again while they are free, so that a single caller fills one slot's lanes, not all.

        Raises:
            DeviceError: The engine was closed.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            free = self._free
            if free:
                chosen = 0
                for place, slot in enumerate(free):
                    if key in slot.lanes:
                        chosen = place
                        break
                return free.pop(chosen)
            ticket = _Ticket()
            self._waiting.append(ticket)
        try:
            ticket.lock.acquire()
        except BaseException:  # Ctrl-C: whoever gives up its place must not be handed a slot
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            if ticket.slot is not None:
                self.release(ticket.slot)
            raise
        if ticket.slot is None:
            raise _closed()
        slot = ticket.slot
        return slot  # type: ignore[no-any-return]

    def release(self, slot: Slot[R, L]) -> None:
        """Gives a slot to the call that has waited longest, or back."""
        if slot.used > self._share and self.used > self.limit:
            self._trim(slot)
        with self._lock:
            if self._waiting:
                ticket = self._waiting.popleft()
                ticket.slot = slot
                ticket.lock.release()
                return
            place = 0
            while place < len(self._free) and self._free[place].index < slot.index:
                place += 1
            self._free.insert(place, slot)
            if self._closed:
                self._idle.notify_all()

    def find(self, slot: Slot[R, L], key: Hashable) -> L | None:
        """Returns the slot's lane for a key, if it has one. The slot must be the caller's."""
        entry = slot.lanes.get(key)
        if entry is None:
            return None
        slot.clock = entry.used_at = slot.clock + 1
        return entry.lane

    def open(self, slot: Slot[R, L], key: Hashable) -> L:
        """Makes a lane for a key that the slot has none for. The slot must be the caller's.

        Where the memory is used up, the slot's least recently used lane is made over: its context takes the new shape
        where contexts may do that, and goes where they may not.

        Raises:
            DeviceError: The GPU's memory does not suffice even after every lane that could go has gone. The pool stays
                usable.
        """
        need = self._workshop.estimate(key)
        fits = self.used + need <= self.limit or slot.used + need <= self._share
        try:
            lane = self._build(slot, key, None if fits else self._take_oldest(slot))
        except OutOfMemory as error:
            _logger.debug("Out of GPU memory; making room and trying again: %s", error)
            self._make_room(slot)
            lane = self._build(slot, key, None)
        slot.clock += 1
        slot.lanes[key] = _Entry(lane, slot.clock, 0)
        self.weigh(slot, key)
        return lane

    def weigh(self, slot: Slot[R, L], key: Hashable) -> None:
        """Counts a lane's memory anew, which its first run may have changed; closes older lanes if it is too much."""
        entry = slot.lanes[key]
        nbytes = entry.lane.nbytes
        slot.used += nbytes - entry.nbytes
        entry.nbytes = nbytes
        self._trim(slot)

    def rename(self, slot: Slot[R, L], key: Hashable, other: Hashable) -> None:
        """Lets the slot's lane for a key serve another one; it may be gone, where memory was needed."""
        if (entry := slot.lanes.pop(key, None)) is not None:
            slot.lanes[other] = entry

    def discard(self, slot: Slot[R, L], key: Hashable) -> None:
        """Closes the slot's lane for a key: it failed, and nobody knows what state it is in."""
        entry = slot.lanes.pop(key, None)
        if entry is not None:
            slot.used -= entry.nbytes
            entry.lane.close()

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
        for slot in self._slots:
            self._clear(slot)
            if slot.resource is not None:
                self._workshop.close_slot(slot.resource)
                slot.resource = None

    def _build(self, slot: Slot[R, L], key: Hashable, old: L | None) -> L:
        if slot.resource is None:
            slot.resource = self._workshop.open_slot()
        return self._workshop.build(slot.resource, key, old)

    def _take_oldest(self, slot: Slot[R, L]) -> L | None:
        if not slot.lanes:
            return None
        entry = slot.lanes.pop(min(slot.lanes, key=lambda key: slot.lanes[key].used_at))
        slot.used -= entry.nbytes
        return entry.lane

    def _trim(self, slot: Slot[R, L]) -> None:
        """Closes the slot's oldest lanes while the pool is over its limit and the slot over its share."""
        while len(slot.lanes) > 1 and slot.used > self._share and self.used > self.limit:
            lane = self._take_oldest(slot)
            if lane is not None:
                lane.close()

    def _make_room(self, slot: Slot[R, L]) -> None:
        """Closes all lanes of this slot and of those that nobody uses."""
        self._clear(slot)
        with self._lock:
            # Taken out of the list, so that no call gets them meanwhile.
            idle, self._free = self._free, []
        for other in idle:
            self._clear(other)
        for other in idle:
            self.release(other)

    def _clear(self, slot: Slot[R, L]) -> None:
        while (lane := self._take_oldest(slot)) is not None:
            lane.close()


def _closed() -> DeviceError:
    return DeviceError("The engine was closed.", "an open one", "load the model again")
