"""Makes bound contexts on the GPU for the pool, and learns what they cost."""

from __future__ import annotations

from collections.abc import Hashable

from . import cuda
from .bound_contexts import BoundDeviceContext, BoundHostContext, nbytes
from .context import Core, Key, StreamResources

_LARGEST_CONTEXT = 1 << 30
"""Bytes: more than this was another process's doing when free memory is compared before and after."""


class ContextFactory:
    """Makes bound contexts for the pool. Used by one thread at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._free_before = 0
        self._reused: int | None = None
        # A first guess, until the first context was weighed.
        self._context_bytes = 32 << 20
        self._out_per_in = 1.0

    def open_resources(self) -> StreamResources:
        """Makes a stream and scratch memory."""
        return StreamResources(self._core.scratch)

    def close_resources(self, resources: StreamResources) -> None:
        """Gives them back."""
        resources.close()

    def estimate(self, key: Hashable) -> int:
        """Bytes of GPU memory that a new bound context will probably hold."""
        assert isinstance(key, Key)
        if key.on_gpu:
            return self._context_bytes
        size = sum(nbytes(b.storage, shape) for b, shape in zip(self._core.inputs, key.shapes))
        return int(size * (1.0 + self._out_per_in)) + self._context_bytes

    def build(
        self, resources: StreamResources, key: Hashable, old: BoundHostContext | BoundDeviceContext | None
    ) -> BoundHostContext | BoundDeviceContext:
        """Makes one, out of an old one of the same stream slot if there is one and contexts may change their shape."""
        assert isinstance(key, Key)
        context = None
        self._reused = None
        if old is not None and self._core.reshapes:
            self._reused = old.context_bytes
            context = old.release_context()
        elif old is not None:
            old.close()
        self._free_before, _ = cuda.memory()
        return (BoundDeviceContext if key.on_gpu else BoundHostContext)(self._core, resources, key, context)

    def weigh(self, bound: BoundHostContext | BoundDeviceContext) -> None:
        """Notes how much GPU memory a bound context took by its first run: TensorRT does not say."""
        if self._reused is not None:
            bound.context_bytes = self._reused
            return
        free, _ = cuda.memory()
        taken = self._free_before - free - bound.nbytes
        # Other threads and processes take and give memory too: a wild figure must not empty the pool.
        bound.context_bytes = self._context_bytes = min(max(taken, 0), _LARGEST_CONTEXT)
        if isinstance(bound, BoundHostContext) and bound.in_bytes:
            self._out_per_in = bound.out_bytes / bound.in_bytes
