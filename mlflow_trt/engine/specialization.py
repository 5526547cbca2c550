"""Which kernels answer at a shape: TensorRT-RTX's specialized ones only where they were seen to agree with the others.

For an engine with dynamic shapes TensorRT-RTX has kernels that serve every shape, and can compile others for the one
that is asked for. Those are faster, a tenth for ResNet-50 and up to 28 times for depthwise convolutions in float32,
but at random one is taken that was compiled for another shape, and then all answers of the context are wrong
(``benchmarks/specialization.py`` shows both, for 1.4.0.76 and 1.6.1.120). A context that was never given another shape
and compiles no specialized kernels was always right.

So the first call at a shape is answered twice: without specialized kernels, and by a context with them, whose memory
held nothing of the first answer. Where the two agree, the second serves the shape from then on; where they do not,
others are tried, and in the end the first one stays. A call whose inputs hold one value only, zeros for example, can't
tell; then the next one is tried.

Either is run with scratch memory full of zeros, and again full of NaN: what another call left there must not be in an
answer. Where the two runs differ, scratch memory is cleared before every call, and the call is repeated. Kernels that
then still answer differently from one run to the next are not used: they run side by side and do not wait for each
other (1.4.0.76, timm's ``res2net50_26w_4s`` in float32 at a batch of 8, without specialization too; 1.6.1.120 is wrong
there as well). If the others are like that too, the engine is refused at these shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import PlanError, TrtError
from .bound_contexts import NAN, ZERO, BoundDeviceContext, BoundHostContext
from .context import Core, Key
from .context_factory import ContextFactory
from .pool import Pool, StreamSlot

_logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Contexts that are tried at a shape: which kernels one gets differs from one to the next."""

REPEATS = 4
"""Runs that must agree after two did not."""


class FirstCall(Protocol):
    """A call that is about to be run for the first time at its shape."""

    def run(self, bound: Any) -> Any:
        """Runs it; returns the caller's answer."""

    def inputs(self, bound: Any) -> Sequence[np.ndarray]:
        """What it was given, in host memory; asked for after it has run."""

    def outputs(self, answer: Any) -> Sequence[np.ndarray]:
        """What an answer holds, in host memory, in the interface's order."""


class HostCall:
    """A call with arrays in host memory; several for an input are rows that follow one another."""

    def __init__(self, arrays: Sequence[np.ndarray | Sequence[np.ndarray]]) -> None:
        self._arrays = arrays

    def run(self, bound: BoundHostContext) -> list[np.ndarray]:
        """Runs it; returns the outputs in the interface's order."""
        return bound.run(self._arrays)

    def inputs(self, bound: BoundHostContext) -> Sequence[np.ndarray]:
        """The arrays, one after the other."""
        return [part for array in self._arrays for part in ([array] if isinstance(array, np.ndarray) else array)]

    def outputs(self, answer: list[np.ndarray]) -> Sequence[np.ndarray]:
        """The answer as it is."""
        return answer


class FirstRuns:
    """Opens the bound context that serves a shape. Used by one thread at a time.

    Args:
        core: The engine.
        pool: Keeps its bound contexts.
        factory: Makes them.
        limit: Relative L2 error of what specialized kernels may answer, against the others.
    """

    def __init__(self, core: Core, pool: Pool[Any, Any], factory: ContextFactory, limit: float) -> None:
        self._core = core
        self._pool = pool
        self._factory = factory
        self._limit = limit
        self._given_up: set[Key] = set()
        """Where specialized kernels were tried, and the others serve."""

    def answer(self, stream_slot: StreamSlot[Any, Any], key: Key, call: FirstCall) -> Any:
        """Runs a call at a shape that the stream slot has no bound context for, or one that is still on trial.

        Raises:
            OutOfMemory: The GPU's memory does not suffice.
        """
        if not self._core.specializes:
            return self._open(stream_slot, key, call)
        plain = key._replace(specialized=False)
        try:
            return self._compared(stream_slot, key, plain, call)
        except BaseException:
            self._pool.discard(stream_slot, plain)
            raise

    def _compared(self, stream_slot: StreamSlot[Any, Any], key: Key, plain: Key, call: FirstCall) -> Any:
        bound: Any = self._pool.find(stream_slot, key)
        if bound is not None:
            self._pool.rename(stream_slot, key, plain)
            right = call.run(bound)
        else:
            right = self._open(stream_slot, plain, call)
            bound = self._pool.find(stream_slot, plain)
        bound.on_trial = False
        if key not in self._given_up:
            outputs = call.outputs(right)
            if tells(call.inputs(bound)) and tells(outputs):
                specialized = self._specialized(stream_slot, key, call, outputs)
                if specialized is not None:
                    self._pool.discard(stream_slot, plain)
                    return specialized
                self._given_up.add(key)
            else:
                bound.on_trial = True
        self._pool.rename(stream_slot, plain, key)
        return right

    def _specialized(
        self, stream_slot: StreamSlot[Any, Any], key: Key, call: FirstCall, right: Sequence[np.ndarray]
    ) -> Any:
        """Opens a bound context with specialized kernels; None: none was found that agrees."""
        for _ in range(ATTEMPTS):
            try:
                answer = self._open(stream_slot, key, call)
                error = worst_error(right, call.outputs(answer))
                if error <= self._limit:
                    return answer
            except TrtError as refusal:
                _logger.debug("No specialized kernels at %s: %s", key.shapes, refusal)
                self._pool.discard(stream_slot, key)
                return None
            self._pool.discard(stream_slot, key)
            _logger.debug("Specialized kernels at %s differ by %.2g: not used", key.shapes, error)
        _logger.warning(
            "TensorRT-RTX's specialized kernels answer wrongly at %s; slower ones serve these shapes.", key.shapes
        )
        return None

    def _open(self, stream_slot: StreamSlot[Any, Any], key: Key, call: FirstCall) -> Any:
        """Makes a bound context and runs it, which compiles its kernels; the last time as later calls will run."""
        bound = self._pool.open(stream_slot, key)
        answer = self._run(bound, call, ZERO)
        if isinstance(bound, BoundHostContext) and self._prefer_runtime_graphs(bound):
            self._pool.discard(stream_slot, key)
            bound = self._pool.open(stream_slot, key)
            answer = self._run(bound, call, ZERO)
        again = self._run(bound, call, NAN)  # from the CUDA graph, if it has one
        if not self._same(call.outputs(answer), call.outputs(again)):
            _logger.debug("What scratch memory holds before a call changes its answer at %s: it is cleared", key.shapes)
            bound.clear_first()
            again = self._steady(key, bound, call)
        bound.shaped.resources.stream.synchronize()
        bound.shaped.keep_kernels()
        self._factory.weigh(bound)
        self._pool.weigh(stream_slot, key)
        return again

    def _steady(self, key: Key, bound: BoundHostContext | BoundDeviceContext, call: FirstCall) -> Any:
        """Runs a call again and again, and returns its answer.

        Raises:
            PlanError: It is not always the same.
        """
        answer = self._run(bound, call, NAN)
        for _ in range(REPEATS - 1):
            again = self._run(bound, call, NAN)
            if not self._same(call.outputs(answer), call.outputs(again)):
                raise PlanError(
                    f"The engine answers the same call at {key.shapes} differently from one run to the next.",
                    "one answer: its kernels do not wait for each other, a fault of TensorRT's",
                    "build it with another precision or another TensorRT release, or with a smaller largest size",
                )
        return answer

    def _same(self, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
        # Bit by bit first: that takes no memory.
        return all(map(np.array_equal, one, other)) or worst_error(one, other) <= self._limit

    @staticmethod
    def _run(bound: BoundHostContext | BoundDeviceContext, call: FirstCall, fill: int) -> Any:
        bound.fill = fill
        try:
            return call.run(bound)
        finally:
            bound.fill = None

    def _prefer_runtime_graphs(self, bound: BoundHostContext) -> bool:
        if not self._core.own_graphs or bound.capturable():
            return False
        _logger.debug("TensorRT can't be captured here; it makes CUDA graphs itself, if it can")
        return self._core.use_runtime_graphs()


def tells(arrays: Sequence[np.ndarray]) -> bool:
    """Whether arrays can show right from wrong: one of them holds finite numbers, and not the same over and over."""
    return not arrays or any(_varies(array) for array in arrays)


def _varies(array: np.ndarray) -> bool:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array.ravel()
    return finite.size > 0 and (array.size == 1 or bool((finite != finite[0]).any()))


def worst_error(right: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The largest relative L2 error of any output as a whole, and of any of its rows.

    A row is measured by its own norm or by that of the average row, whichever is larger: one whose values cancel out is
    no fault. For whole numbers and bools it is the share that differs. Infinite where shapes differ, or one side is not
    finite where the other is.
    """
    return max((_error(np.asarray(a), np.asarray(b)) for a, b in zip(right, other)), default=0.0)


def _error(right: np.ndarray, other: np.ndarray) -> float:
    if right.shape != other.shape:
        return np.inf
    if right.size == 0:
        return 0.0
    if right.dtype.kind in "biu":
        return float(np.mean(right != other))
    a, b = right.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return np.inf
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    rows = (len(a), -1) if a.ndim > 1 else (1, -1)
    norms = np.linalg.norm(a.reshape(rows), axis=1)
    errors = np.linalg.norm((b - a).reshape(rows), axis=1)
    usual = float(np.sqrt(np.mean(norms**2)))
    if usual == 0.0:
        return 0.0 if not errors.any() else np.inf
    return float(max(np.max(errors / np.maximum(norms, usual)), np.linalg.norm(errors) / np.linalg.norm(norms)))
