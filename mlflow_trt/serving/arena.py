"""Memory that two processes share, so that tensors pass from one to the other without being sent.

One side takes and gives back pieces, the other is told where they lie. Pieces have sizes of powers of two and are used
again: a page that was touched once costs nothing any more.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SMALLEST = 12  # 4 KiB


class Arena:
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

    def take(self, nbytes: int) -> int | None:
        """Takes a piece and returns its offset; None: there is not enough left."""
        power = _power(nbytes)
        with self._lock:
            if self._free[power]:
                return self._free[power].pop()
            if self._top + (1 << power) > self._size:
                return None
            self._top += 1 << power
            return self._top - (1 << power)

    def give(self, offset: int, nbytes: int) -> None:
        """Gives a piece back; whoever still reads it reads what comes next."""
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


def create(size: int) -> int:
    """Returns the descriptor of new, empty memory, which a child process inherits; pages take room once used."""
    descriptor = os.memfd_create("mlflow-trt", 0)
    os.ftruncate(descriptor, size)
    return descriptor


def _power(nbytes: int) -> int:
    return max((nbytes - 1).bit_length(), SMALLEST)
