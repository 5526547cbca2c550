"""The few CUDA calls that running an engine takes, on cuda-bindings' runtime module.

cuda-bindings rather than cuda.core: its import takes 0.08 s instead of 0.2 s, a call about a microsecond, and these
functions are the same in 12.9 and 13. Nothing here decides anything; every failure is a DeviceError.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart

from ..errors import DeviceError
from ..plan.host import check_index
from .pool import OutOfMemory

_logger = logging.getLogger(__name__)

SUCCESS = cudart.cudaError_t.cudaSuccess
ALIGNMENT = 256
"""Bytes: what TensorRT asks of a binding's address, and what cudaMalloc gives."""

# Bound once: attribute lookups on the module are a measurable part of a call of a few microseconds.
graph_launch = cudart.cudaGraphLaunch
stream_synchronize = cudart.cudaStreamSynchronize
_memcpy = cudart.cudaMemcpyAsync
_get_device = cudart.cudaGetDevice
_set_device = cudart.cudaSetDevice
_thread = threading.local()
_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
_ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice


def failure(error: Any, doing: str) -> DeviceError:
    """Returns the exception for a CUDA error code."""
    _, text = cudart.cudaGetErrorString(error)
    what = f"CUDA error {int(error)} ({text.decode() if text else 'unknown'}) while {doing}."
    # Clears the thread's last error, unless it is one that the process can't recover from.
    cudart.cudaGetLastError()
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        return OutOfMemory(what, "enough free GPU memory", "see nvidia-smi for what else is on the GPU")
    return DeviceError(
        what,
        "a GPU and driver that answer",
        "look at nvidia-smi and the kernel log; after an illegal address or a lost GPU only a new process helps",
    )


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Returns what a CUDA call returned beside its error code.

    Raises:
        OutOfMemory: There is not enough GPU or page-locked memory.
        DeviceError: It failed otherwise.
    """
    if result[0] != SUCCESS:
        raise failure(result[0], doing)
    return result[1] if len(result) == 2 else result[1:]


def device_count() -> tuple[int, str]:
    """Returns how many GPUs CUDA sees, and why if it sees none. Never raises."""
    try:
        error, count = cudart.cudaGetDeviceCount()
        if error == SUCCESS:
            return int(count), "" if count else "CUDA sees no GPU"
        _, text = cudart.cudaGetErrorString(error)
        return 0, text.decode() if text else f"CUDA error {int(error)}"
    except Exception as error:
        return 0, str(error)


def require_device(device: int) -> None:
    """Checks that a GPU is there, before anything that crashes without one is called.

    Raises:
        DeviceError: There is no driver, no GPU, or none of this index.
    """
    count, why = device_count()
    if count == 0:
        raise DeviceError(
            f"No NVIDIA GPU can be used: {why}.",
            "a GPU and a driver at least as new as TensorRT's CUDA",
            "check that nvidia-smi lists a GPU (in a container: start it with --gpus), or load the model with "
            'backend="reference" to run its program on the CPU',
        )
    check_index(device)


def enter(device: int) -> int | None:
    """Makes a device the thread's current one.

    Returns:
        The one that was current, if it was another: pass it to :func:`leave`. The caller's own CUDA code, torch's for
        example, goes by the current device, so it must find it as it was.
    """
    error, current = _get_device()
    if error == SUCCESS and current == device and getattr(_thread, "has_context", False):
        return None
    # Also where it is current already: a new thread has no CUDA context before this, and TensorRT's compiler and its
    # runtime cache want one.
    check(_set_device(device), f"choosing device {device}")
    _thread.has_context = True
    return int(current) if error == SUCCESS and current != device else None


def leave(previous: int | None) -> None:
    """Makes the device current again that :func:`enter` returned."""
    if previous is not None:
        _set_device(previous)


def memory() -> tuple[int, int]:
    """Returns (free, total) bytes of the current device's memory."""
    free, total = check(cudart.cudaMemGetInfo(), "asking for free GPU memory")
    return int(free), int(total)


class Block:
    """Memory of one allocation: on the GPU, or page-locked on the host."""

    def __init__(self, nbytes: int, *, pinned: bool = False) -> None:
        self.nbytes = max(nbytes, ALIGNMENT)
        self._pinned = pinned
        self.pointer: int = 0
        if pinned:
            result = cudart.cudaHostAlloc(self.nbytes, cudart.cudaHostAllocDefault)
        else:
            result = cudart.cudaMalloc(self.nbytes)
        where = "on the host" if pinned else "on the GPU"
        self.pointer = int(check(result, f"allocating {self.nbytes:,} bytes {where}"))

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array on page-locked memory; the block must outlive it."""
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.empty(shape, dtype)
        memory: Any = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(self.pointer + offset)
        array: np.ndarray = np.frombuffer(memory, dtype=dtype, count=count)
        return array.reshape(shape)

    def free(self) -> None:
        """Gives the memory back; nothing may use it any more."""
        if self.pointer:
            (cudart.cudaFreeHost if self._pinned else cudart.cudaFree)(self.pointer)
            self.pointer = 0


class Stream:
    """A stream with two events: what it waits for, and what waits for it."""

    def __init__(self) -> None:
        # Non-blocking: no order with the legacy default stream, where other libraries in the process work.
        self.raw = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "making a stream")
        self.handle = int(self.raw)
        self._ready = check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming), "making an event")
        self._done = check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming), "making an event")

    def wait_for(self, other: int) -> None:
        """Lets this stream's later work wait for what was queued on another, by handle."""
        check(cudart.cudaEventRecord(self._ready, cudart.cudaStream_t(other)), "recording an event")
        check(cudart.cudaStreamWaitEvent(self.raw, self._ready, 0), "waiting for an event")

    def hold_up(self, other: int) -> None:
        """Lets another stream's later work wait for what was queued on this one."""
        check(cudart.cudaEventRecord(self._done, self.raw), "recording an event")
        check(cudart.cudaStreamWaitEvent(cudart.cudaStream_t(other), self._done, 0), "waiting for an event")

    def synchronize(self) -> None:
        """Waits until all queued work is done.

        Spins rather than sleeps: waking takes some 20 µs, a good part of a small network's time, and no more threads
        than ``max_contexts`` ever wait here at once.
        """
        (error,) = stream_synchronize(self.raw)
        if error != SUCCESS:
            raise failure(error, "running the engine")

    def close(self) -> None:
        """Destroys the stream, whose work must be done."""
        cudart.cudaEventDestroy(self._ready)
        cudart.cudaEventDestroy(self._done)
        cudart.cudaStreamDestroy(self.raw)


def page_lock(address: int, nbytes: int) -> None:
    """Page-locks memory that exists already, for all devices.

    Raises:
        DeviceError: It can't be.
    """
    check(cudart.cudaHostRegister(address, nbytes, cudart.cudaHostRegisterPortable), f"page-locking {nbytes:,} bytes")


def page_unlock(address: int) -> None:
    """Undoes :func:`page_lock`."""
    cudart.cudaHostUnregister(address)


def to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queues a copy from page-locked memory to the GPU."""
    check(_memcpy(target, source, nbytes, _TO_DEVICE, stream.raw), "copying to the GPU")


def to_host(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queues a copy from the GPU to the host."""
    check(_memcpy(target, source, nbytes, _TO_HOST, stream.raw), "copying from the GPU")


def on_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queues a copy within the GPU's memory."""
    check(_memcpy(target, source, nbytes, _ON_DEVICE, stream.raw), "copying on the GPU")


def fill(target: int, byte: int, nbytes: int, stream: Stream) -> None:
    """Queues the filling of memory on the GPU with one byte."""
    check(cudart.cudaMemsetAsync(target, byte, nbytes, stream.raw), "filling memory on the GPU")


def capture(stream: Stream, work: Callable[[], None]) -> Any:
    """Records what ``work`` queues on a stream as a CUDA graph, without running it.

    Returns:
        The executable graph.

    Raises:
        DeviceError: Something in it can't be captured; the stream is as before.
        Exception: What ``work`` raised.
    """
    # Thread-local: other threads allocate memory and build contexts meanwhile, which global capture forbids them.
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(cudart.cudaStreamBeginCapture(stream.raw, mode), "beginning to capture")
    try:
        work()
    except BaseException:
        error, graph = cudart.cudaStreamEndCapture(stream.raw)
        if error == SUCCESS:
            cudart.cudaGraphDestroy(graph)
        cudart.cudaGetLastError()
        raise
    graph = check(cudart.cudaStreamEndCapture(stream.raw), "ending the capture")
    try:
        return check(cudart.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
    finally:
        cudart.cudaGraphDestroy(graph)


def destroy_graph(graph: Any) -> None:
    """Destroys an executable graph that is not running."""
    cudart.cudaGraphExecDestroy(graph)
