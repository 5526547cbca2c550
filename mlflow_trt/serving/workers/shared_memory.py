"""Memory that two processes share, so that tensors pass from one to the other without being sent.

One side allocates and frees blocks, the other is told where they lie. Blocks have sizes of powers of two and are used
again: a page that was touched once costs nothing any more. And what was page-locked once a GPU fetches by itself. Only
where no block is left are free ones joined and cut anew: a burst of one size must not leave the memory full for others.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SMALLEST = 12  # 4 KiB
_STEP = 16 << 20
"""Bytes that are page-locked at once."""


class SharedMemory:
    """Shared memory.

    Args:
        descriptor: An open file that both sides map; it stays the caller's to close.
        size: Its bytes.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._memory = mmap.mmap(descriptor, size)
        self._size = size
        self._top = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._locked: list[tuple[int, int]] = []
        """Of each page-locked part its end, and the device that it was locked with."""

    def allocate(self, nbytes: int) -> int | None:
        """Allocates a block and returns its offset; None: there is not enough left."""
        power = _power(nbytes)
        with self._lock:
            if self._free[power]:
                return self._free[power].pop()
            if self._top + (1 << power) > self._size:
                return self._allocate_anew(power)
            self._top += 1 << power
            return self._top - (1 << power)

    def free(self, offset: int, nbytes: int) -> None:
        """Frees a block; whoever still reads it reads what comes next."""
        with self._lock:
            self._free[_power(nbytes)].append(offset)

    def array(self, offset: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
        """Returns an array that lies in the memory.

        Args:
            offset: Where it begins.
            dtype: A numpy name.
            shape: Its sizes.
        """
        return np.ndarray(tuple(shape), dtype, self._memory, offset)

    def page_lock(self, end: int, device: int) -> bool:
        """Page-locks it up to a place; what lies across the end of an earlier call counts as not page-locked.

        Args:
            end: Its offset.
            device: A GPU of this process.

        Returns:
            False: that can't be done.
        """
        begin = self._locked[-1][0] if self._locked else 0
        if end <= begin:
            return True
        # Here, not above: an HTTP worker has shared memory too, and needs nothing of CUDA.
        from ...engine import pinned

        end = min(-(-end // _STEP) * _STEP, self._size)
        done = pinned.lock(self._address() + begin, end - begin, device)
        if done:
            self._locked.append((end, device))
        return done

    def page_unlock(self) -> None:
        """Undoes that; no call of an engine may be reading it, and the memory goes when nothing holds it any more."""
        from ...engine import pinned

        begin = 0
        for end, device in self._locked:
            pinned.unlock(self._address() + begin, device)
            begin = end
        self._locked.clear()

    def _allocate_anew(self, power: int) -> int | None:
        """Allocates a block of what free ones of other sizes have side by side, and cuts the rest of it anew."""
        gaps: list[tuple[int, int]] = []
        for begin, end in sorted((at, at + (1 << size)) for size, blocks in self._free.items() for at in blocks):
            if gaps and gaps[-1][1] == begin:
                begin, _ = gaps.pop()
            gaps.append((begin, end))
        self._free.clear()
        if gaps and gaps[-1][1] == self._top:
            self._top, _ = gaps.pop()
        offset: int | None = None
        fitting = [gap for gap in gaps if gap[1] - gap[0] >= 1 << power]
        if fitting:
            gap = min(fitting, key=lambda gap: gap[1] - gap[0])
            offset = gap[0]
            gaps[gaps.index(gap)] = (offset + (1 << power), gap[1])
        elif self._top + (1 << power) <= self._size:
            offset = self._top
            self._top += 1 << power
        for begin, end in gaps:
            while begin < end:
                largest = (end - begin).bit_length() - 1
                self._free[largest].append(begin)
                begin += 1 << largest
        return offset

    def _address(self) -> int:
        address: int = self.array(0, "uint8", (1,)).__array_interface__["data"][0]
        return address


def create(size: int) -> int:
    """Returns the descriptor of new, empty memory, which a child process inherits; pages take room once used."""
    descriptor = os.memfd_create("mlflow-trt", 0)
    os.ftruncate(descriptor, size)
    return descriptor


def _power(nbytes: int) -> int:
    return max((nbytes - 1).bit_length(), SMALLEST)
