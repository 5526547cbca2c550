"""A plan becomes an engine: checked, deserialized, and run by as many threads as like."""

from __future__ import annotations

import atexit
import logging
import mmap
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import DeviceError, InputError, ManifestError, PlanError, SettingError
from ..plan.api import Backend, Result
from ..plan.compatibility import runtime_for
from ..plan.files import check_plan
from ..plan.host import probe
from ..plan.manifest import Host, Interface, PlanRecord, Profile
from ..plan.parity import default_tolerance
from ..plan.signature import CallSignature, Shapes
from . import cuda, kernel_files
from . import tensors as interop
from .context import Core, Key, StreamResources
from .context_factory import ContextFactory
from .device_call import GpuCall
from .pool import OutOfMemory, Pool
from .runtime_cache import compiling, kernels_of, network_of
from .specialization import FirstCall, FirstRuns, HostCall
from .trt import Deserialized, check_interface, describe, profiles

_logger = logging.getLogger(__name__)


class TensorRTEngine:
    """An engine that answers from many threads.

    Args:
        folder: The model's folder, which holds the plan.
        record: The plan, from the manifest.
        interface: How the model is called; None: the engine is asked.
        device: Index of the GPU.
        max_contexts: How many calls run on the GPU at once; further ones wait. Two gain about a third in throughput
            over one, more lose again (ResNet-50 on an H100).
        memory_limit: Bytes of GPU memory that execution contexts and their buffers may hold, scratch and weights not
            counted; one context for each of ``max_contexts`` is kept in any case. None: a quarter of what is free once
            the engine is loaded.
        runtime_cache: Whether TensorRT-RTX's compiled kernels are read from, and saved to, the local cache.
        cuda_graphs: Whether calls may run as CUDA graphs.
        host: This machine, if it was probed already.

    Raises:
        SettingError: A setting has a value that can't be honoured.
        DeviceError: There is no driver, no GPU, none of this index, or not enough of its memory.
        PlanError: The plan is missing, cut short, altered, or TensorRT refused it.
        ManifestError: Plan and manifest disagree.
    """

    backend: Backend = "tensorrt"

    def __init__(
        self,
        folder: Path,
        record: PlanRecord,
        interface: Interface | None = None,
        *,
        device: int = 0,
        max_contexts: int = 2,
        memory_limit: int | None = None,
        runtime_cache: bool = True,
        cuda_graphs: bool = True,
        host: Host | None = None,
    ) -> None:
        _check_settings(max_contexts, memory_limit)
        path = check_plan(folder, record)
        cuda.require_device(device)
        self.record = record
        self.device = device
        self.host = host or probe(device)
        saved = kernel_files.path_for(record.file.sha256, record.release, self.host)
        previous = cuda.enter(device)
        try:
            loaded = _deserialize(path, record, runtime_for(record, self.host))
            self.interface, self.profiles = _interface(loaded, record, interface)
            self._call_signature = CallSignature(self.interface, self.profiles)
            core = Core(loaded, self.interface, cuda_graphs)
            if core.is_rtx:
                network = network_of(loaded, self.interface, self.profiles, device)
                with compiling:
                    core.kernels = kernels_of(network, loaded.trt.__version__)
                    if runtime_cache:
                        core.kernels.begin(loaded, kernel_files.candidates(folder, record, saved))
            free, _ = cuda.memory()
        finally:
            cuda.leave(previous)
        self._core: Core | None = core
        limit = free // 4 if memory_limit is None else memory_limit
        self._factory = ContextFactory(core)
        self._pool: Pool[StreamResources, Any] = Pool(self._factory, max_contexts, limit)
        allowed = 2 * default_tolerance(record.precision.requested).rel_l2  # each may be off to its own side
        self._first_runs = FirstRuns(core, self._pool, self._factory, allowed)
        self._host_inputs = [i for i, b in enumerate(core.inputs) if b.on_host]
        self._output_names = tuple(t.name for t in self.interface.outputs)
        self._keeper = kernel_files.Keeper(saved, self._kernels) if runtime_cache and core.is_rtx else None
        _open_engines.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model as the original was called, and answers in its own structure.

        Numpy arrays and torch tensors in host memory are copied to the GPU and back. Torch tensors on the GPU are used
        where they are, in the order of torch's current stream, and the answer is on the GPU, in that stream's order.
        Tensors of other libraries on the GPU (by DLPack) are used where they are; the answer is numpy.

        Raises:
            InputError: The arguments do not fit the interface or any optimization profile.
            DeviceError: The GPU refused.
        """
        given = self._call_signature.bind(args, kwargs)
        kind = interop.kind_of(given.values())
        outputs: Mapping[str, Any]
        if kind == "cuda":
            outputs = self._run_on_gpu(given)
        elif kind == "torch":
            arrays, _ = self._run(interop.to_host(given))
            outputs = {name: interop.to_torch(array) for name, array in arrays.items()}
        else:
            outputs, _ = self._run(given)
        return self._call_signature.unflatten(outputs, given)

    def predict(self, inputs: Any) -> Result:
        """Answers a dict of arrays by input name (one bare array for a model of one input) with one by output name.

        Raises:
            InputError: The inputs do not fit the interface or any optimization profile.
            DeviceError: The GPU refused.
        """
        outputs, profile = self._run(self._call_signature.named(inputs))
        return Result(outputs, "tensorrt", self.record.file.sha256, profile)

    def predict_stacked(self, columns: Sequence[Sequence[np.ndarray]], rows: int) -> Result:
        """Answers the rows of several calls as one, copied straight to where the GPU reads them.

        Args:
            columns: For each input, in the interface's order, the arrays whose rows follow one another; of the input's
                dtype, and alike but for their numbers of rows.
            rows: The size of the batch; beyond the last row that one is repeated.

        Raises:
            InputError: The shape does not fit any optimization profile.
            DeviceError: The GPU refused.
        """
        shapes = tuple([(rows, *parts[0].shape[1:]) for parts in columns])
        profile = self._call_signature.profile_of(shapes)
        return Result(self._answer(columns, shapes, profile), "tensorrt", self.record.file.sha256, profile)

    def layers(self) -> list[dict[str, Any]]:
        """Returns the engine's layers, one row each; names alone unless it was built with detailed verbosity."""
        return self._loaded().layers()

    def runtime_cache(self) -> bytes | None:
        """Returns the kernels that TensorRT-RTX has compiled so far, to ship beside the plan; None: there are none."""
        return self._kernels()

    @property
    def memory(self) -> dict[str, int]:
        """GPU memory in bytes: ``contexts`` in use, their ``limit``, ``scratch`` per concurrent call; and how many
        bound contexts there are, ``lanes``."""
        core = self._open()
        return {
            "contexts": self._pool.used,
            "limit": self._pool.limit,
            "scratch": core.scratch,
            "lanes": self._pool.contexts,
        }

    def close(self) -> None:
        """Waits for running calls, saves compiled kernels, and frees the GPU's memory; later calls fail."""
        if self._core is None:
            return
        if self._keeper is not None:
            self._keeper.save()
        previous = cuda.enter(self.device)
        try:
            self._pool.close()
        finally:
            cuda.leave(previous)
        core, self._core = self._core, None
        if core is not None:
            # Contexts first, then what they hold on to, then the engine: TensorRT asks for that order.
            core.release()
        _open_engines.discard(self)

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, tensors: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
        """Arrays in host memory, by name, in and out; and the profile that was used."""
        call = self._call_signature.check(tensors)
        return self._answer(call.arrays, call.shapes, call.profile), call.profile

    def _answer(
        self, arrays: Sequence[np.ndarray | Sequence[np.ndarray]], shapes: Shapes, profile: int
    ) -> dict[str, np.ndarray]:
        """The hot path: keep it flat."""
        values: tuple[bytes, ...] = ()
        if self._host_inputs:
            values = self._values(arrays)
        key = Key(shapes, profile, values)
        pool = self._pool
        stream_slot = pool.acquire(key)
        previous = None
        try:
            previous = cuda.enter(self.device)
            bound = pool.find(stream_slot, key)
            if bound is None or bound.on_trial:
                outputs = self._first_run(stream_slot, key, HostCall(arrays))
            else:
                outputs = bound.run(arrays)
        except InputError:
            raise
        except BaseException:
            pool.discard(stream_slot, key)
            raise
        finally:
            cuda.leave(previous)
            pool.release(stream_slot)
        return dict(zip(self._output_names, outputs))

    def _first_run(self, stream_slot: Any, key: Key, call: FirstCall) -> Any:
        """Runs a call at a shape that no bound context of the stream slot serves yet, which compiles its kernels."""
        # One at a time: the second begins with what the first has compiled.
        with compiling:
            try:
                answer = self._first_runs.answer(stream_slot, key, call)
            except OutOfMemory as error:
                raise self._out_of_memory(key, error) from error
        if self._keeper is not None:
            self._keeper.change()
        return answer

    def _run_on_gpu(self, given: Mapping[str, Any]) -> dict[str, Any]:
        core = self._open()
        call = GpuCall(core, self._call_signature, given, self.device)
        pool = self._pool
        stream_slot = pool.acquire(call.key)
        previous = None
        try:
            previous = cuda.enter(self.device)
            bound = pool.find(stream_slot, call.key)
            if bound is None or bound.on_trial:
                return self._first_run(stream_slot, call.key, call)  # type: ignore[no-any-return]
            return call.run(bound)
        except InputError:
            raise
        except BaseException:
            pool.discard(stream_slot, call.key)
            raise
        finally:
            cuda.leave(previous)
            pool.release(stream_slot)

    def _values(self, arrays: Sequence[Any]) -> tuple[bytes, ...]:
        core = self._open()
        return tuple(np.ascontiguousarray(arrays[i], core.inputs[i].storage).tobytes() for i in self._host_inputs)

    def _out_of_memory(self, key: Key, error: OutOfMemory) -> DeviceError:
        free, total = cuda.memory()
        core = self._open()
        shapes = ", ".join(f"{b.tensor.name} {shape}" for b, shape in zip(core.inputs, key.shapes))
        return DeviceError(
            f"The GPU's memory does not suffice for a call with {shapes}: {error.found} Needed for it: about "
            f"{self._factory.estimate(key) + core.scratch:,} bytes; free: {free:,} of {total:,}.",
            "room for one execution context, its scratch memory and its buffers",
            f"give a smaller batch, load with a lower max_contexts (now {self._pool.size}) or memory_limit (now "
            f"{self._pool.limit:,}), or free memory on the GPU",
        )

    def _kernels(self) -> bytes | None:
        core = self._core
        if core is None or core.kernels is None:
            return None
        with compiling:
            return core.kernels.serialize()

    def _open(self) -> Core:
        core = self._core
        if core is None:
            raise DeviceError("The engine was closed.", "an open one", "load the model again")
        return core

    def _loaded(self) -> Deserialized:
        return self._open().loaded


def describe_engine(serialized: bytes, record: PlanRecord, *, device: int = 0) -> tuple[Interface, tuple[Profile, ...]]:
    """Asks an engine that someone else built for its inputs, outputs and optimization profiles.

    Args:
        serialized: The engine.
        record: Its runtime and release.
        device: Index of the GPU that it is loaded on for that.

    Raises:
        DeviceError: There is no such GPU, or not enough of its memory.
        PlanError: TensorRT refused the engine.
        ManifestError: A binding has a dtype or memory layout that arrays can't have.
    """
    cuda.require_device(device)
    previous = cuda.enter(device)
    try:
        loaded = Deserialized(record.runtime, record.release, serialized)
        interface, ranges = describe(loaded.trt, loaded.engine)
        check_interface(loaded.trt, loaded.engine, interface)
        return interface, ranges
    finally:
        cuda.leave(previous)


_open_engines: weakref.WeakSet[TensorRTEngine] = weakref.WeakSet()


@atexit.register
def _save_kernels() -> None:
    """A script that ends without close() keeps what was compiled."""
    for engine in list(_open_engines):
        if engine._keeper is not None:
            engine._keeper.save()


def _check_settings(max_contexts: int, memory_limit: int | None) -> None:
    if not isinstance(max_contexts, int) or isinstance(max_contexts, bool) or max_contexts < 1:
        raise SettingError(f"max_contexts is {max_contexts!r}.", "a whole number of at least 1", "2 is a good choice")
    if memory_limit is not None and (not isinstance(memory_limit, int) or memory_limit < 1):
        raise SettingError(
            f"memory_limit is {memory_limit!r}.", "bytes, at least 1, or None", "leave it out for a quarter of the free"
        )


def _deserialize(path: Path, record: PlanRecord, runtime: str | None) -> Deserialized:
    # Mapped, not read: the pages are the file's own, which the system may drop, so that what TensorRT itself takes is
    # all that the process holds of the plan.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        loaded = Deserialized(runtime or record.runtime, record.release, plan)
    here = ".".join(str(loaded.trt.__version__).split(".")[:4])
    if here != record.release and not record.version_compatible:
        raise PlanError(
            f"{record.runtime} {here} is imported.", f"{record.release}, which built the plan", "install that release"
        )
    return loaded


def _interface(
    loaded: Deserialized, record: PlanRecord, interface: Interface | None
) -> tuple[Interface, tuple[Profile, ...]]:
    trt, engine = loaded.trt, loaded.engine
    if interface is None:
        interface, own = describe(trt, engine)
        check_interface(trt, engine, interface)
        return interface, own
    check_interface(trt, engine, interface)
    # The engine's own profiles, not the record's: they are what it will accept.
    own = profiles(trt, engine, interface.inputs)
    # An engine whose inputs are all static may have none.
    if own and record.profiles is not None and len(record.profiles) != len(own):
        raise ManifestError(
            f"The engine has {len(own)} optimization profiles.",
            f"{len(record.profiles)}, as the manifest says",
            "plan and manifest do not belong together: log the model again",
        )
    return interface, own
