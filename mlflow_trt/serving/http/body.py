"""Puts large bodies together piece by piece: joined at the end, all of it is copied while nothing else can run."""

from __future__ import annotations

import numpy as np

SMALL = 16 << 20
"""Bytes: less is joined in about a millisecond."""


class BodyBuffer:
    """Bytes that arrive, in memory that may be written: PyTorch would copy a tensor that may not.

    Args:
        most: How many there can be at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: list[bytes] = []
        self._large: memoryview | None = None
        self.size = 0

    def append(self, chunk: bytes) -> None:
        """Adds some; all together must not be more than ``most``."""
        if self._large is None:
            self._chunks.append(chunk)
            self.size += len(chunk)
            if self.size > SMALL:
                # Only what is used of it takes memory, and not all of that at once.
                self._large = np.empty(self._most, np.uint8).data
                chunks, self._chunks, self.size = self._chunks, [], 0
                for earlier in chunks:
                    self._put(earlier)
        else:
            self._put(chunk)

    def take(self) -> bytearray | memoryview:
        """Returns all of them."""
        return bytearray().join(self._chunks) if self._large is None else self._large[: self.size]

    def _put(self, chunk: bytes) -> None:
        assert self._large is not None
        self._large[self.size : self.size + len(chunk)] = chunk
        self.size += len(chunk)
