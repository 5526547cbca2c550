"""A GPU and a TensorRT in host memory, for tests of the code between them on machines that have neither.

A fake only for what can't be had: CUDA's runtime functions work on host memory, streams run at once, captured graphs
are lists of what to replay, and an "engine" is a Python function from arrays to arrays. It checks what the real ones
punish with undefined behaviour: a context used by two threads, addresses outside any allocation, memory used after it
was freed.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from cuda.bindings import runtime as real

OK = real.cudaError_t.cudaSuccess


class Cudart:
    """The functions of ``cuda.bindings.runtime`` that the package calls, on host memory."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStream_t = real.cudaStream_t
    cudaHostAllocDefault = real.cudaHostAllocDefault
    cudaHostRegisterPortable = real.cudaHostRegisterPortable
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDisableTiming = real.cudaEventDisableTiming

    def __init__(self, total=1 << 30):
        self.total = total
        self.device = 0
        self.lock = threading.Lock()
        self.blocks = {}
        self.pinned = {}
        self.fetched = []
        """Bytes of each copy to the GPU."""
        self.streams = {}
        self.ids = itertools.count(100)
        self.launches = 0
        self.graphs = 0
        self.fail_next = None

    @property
    def used(self):
        return sum(len(b) for b in self.blocks.values())

    def allocate(self, size, where):
        with self.lock:
            if where is self.blocks and self.used + size > self.total:
                return real.cudaError_t.cudaErrorMemoryAllocation, 0
            raw = ctypes.create_string_buffer(size + 256)
            address = -(-ctypes.addressof(raw) // 256) * 256
            start = address - ctypes.addressof(raw)
            where[address] = memoryview(raw)[start : start + size]
            return OK, address

    def cudaMalloc(self, size):
        return self.allocate(size, self.blocks)

    def cudaHostAlloc(self, size, flags):
        return self.allocate(size, self.pinned)

    def cudaFree(self, pointer):
        with self.lock:
            del self.blocks[pointer]
        return (OK,)

    def cudaFreeHost(self, pointer):
        with self.lock:
            del self.pinned[pointer]
        return (OK,)

    def cudaHostRegister(self, pointer, size, flags):
        failed, self.fail_next = self.fail_next, None
        if failed:
            return (failed,)
        with self.lock:
            assert pointer not in self.pinned, "page-locked twice"
            self.pinned[pointer] = memoryview((ctypes.c_ubyte * size).from_address(pointer))
        return (OK,)

    def cudaHostUnregister(self, pointer):
        return self.cudaFreeHost(pointer)

    def check_range(self, pointer, size, where):
        with self.lock:
            inside = any(base <= pointer and pointer + size <= base + len(b) for base, b in where.items())
        assert inside, f"{size} bytes at {pointer:#x} are in no allocation"

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        def copy():
            if kind != real.cudaMemcpyKind.cudaMemcpyHostToDevice:
                self.check_range(source, size, self.blocks)
            else:
                self.check_range(source, size, self.pinned)
                self.fetched.append(size)
            if kind != real.cudaMemcpyKind.cudaMemcpyDeviceToHost:
                self.check_range(target, size, self.blocks)
            ctypes.memmove(target, source, size)

        return self.queue(int(stream), copy)

    def cudaMemsetAsync(self, target, byte, size, stream):
        def fill():
            self.check_range(target, size, self.blocks)
            ctypes.memset(target, byte, size)

        return self.queue(int(stream), fill)

    def queue(self, stream, work):
        recording = self.streams[stream]
        if recording is None:
            work()
        else:
            recording.append(work)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        stream = real.cudaStream_t(next(self.ids))
        self.streams[int(stream)] = None
        return OK, stream

    def cudaStreamDestroy(self, stream):
        del self.streams[int(stream)]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        assert self.streams[int(stream)] is None, "a stream is synchronized while it is captured"
        failed, self.fail_next = self.fail_next, None
        return (failed or OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.streams[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.streams[int(stream)] = self.streams[int(stream)], None
        return OK, recorded

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs += 1
        return OK, list(graph)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for work in graph:
            work()
        return (OK,)

    def cudaGraphDestroy(self, graph):
        return (OK,)

    def cudaGraphExecDestroy(self, graph):
        graph[:] = [lambda: pytest_fail("a destroyed graph was launched")]
        self.graphs -= 1
        return (OK,)

    def cudaEventCreateWithFlags(self, flags):
        return OK, object()

    def cudaEventDestroy(self, event):
        return (OK,)

    def cudaEventRecord(self, event, stream):
        return (OK,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        return (OK,)

    def cudaMemGetInfo(self):
        return OK, self.total - self.used, self.total

    def cudaGetDeviceCount(self):
        return OK, 1

    def cudaGetDevice(self):
        return OK, self.device

    def cudaSetDevice(self, device):
        self.device = device
        return (OK,)

    def cudaGetErrorString(self, error):
        return OK, b"stand-in error"

    def cudaGetLastError(self):
        return (OK,)


def pytest_fail(text):
    raise AssertionError(text)


class Enum(SimpleNamespace):
    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        return self.name == other.name


def enum(*names):
    return SimpleNamespace(
        **{n: Enum(name=n, value=1 << i) for i, n in enumerate(names)},
        __members__={n: Enum(name=n, value=1 << i) for i, n in enumerate(names)},
    )


class Binding:
    def __init__(self, name, dtype, shape, is_input, on_host=False):
        self.name, self.dtype, self.shape = name, dtype, tuple(shape)
        self.is_input, self.on_host = is_input, on_host


STORAGE = {
    **{"FLOAT": "f4", "HALF": "f2", "BF16": "u2", "INT8": "i1"},
    **{"UINT8": "u1", "INT32": "i4", "INT64": "i8", "BOOL": "?"},
}


class Engine:
    """Bindings, profiles, and ``compute(inputs by binding) -> outputs by binding`` on numpy arrays of raw bits."""

    def __init__(self, trt, bindings, profiles, compute, shapes, *, scratch=4096, context_bytes=0):
        self.trt, self.bindings, self.profiles = trt, {b.name: b for b in bindings}, profiles
        self.compute, self.shapes = compute, shapes
        self.device_memory_size_v2 = scratch
        self.context_bytes = context_bytes
        self.num_io_tensors = len(bindings)
        self.num_optimization_profiles = max(len(profiles), 1)
        self.contexts = 0
        self.specialized = 0
        """How many contexts with specialized kernels there have been."""
        self.fault = lambda number, answers: answers
        """What the context with specialized kernels of this number makes of its answers."""
        self.misled = False
        """Whether a context without specialized kernels ran with such ones in its cache."""
        self.reads_leftovers = False
        """Whether what scratch memory holds before a run is multiplied by zero and added."""
        self.capturable = True

    def get_tensor_name(self, index):
        return list(self.bindings)[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if self.bindings[name].is_input else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.bindings[name].dtype)

    def get_tensor_shape(self, name):
        return self.bindings[name].shape

    def get_tensor_location(self, name):
        return self.trt.TensorLocation.HOST if self.bindings[name].on_host else self.trt.TensorLocation.DEVICE

    def get_tensor_format(self, name):
        return self.trt.TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name, index):
        return self.profiles[index][name]

    def create_runtime_config(self):
        return Config()

    def create_execution_context(self, config):
        assert isinstance(config, Config)
        assert config.strategy == "USER_MANAGED"
        error, memory = (OK, 0) if not self.context_bytes else self.trt.cudart.cudaMalloc(self.context_bytes)
        if error != OK:
            self.trt.say("ERROR", "Error Code 2: OutOfMemory (out of memory)")
            return None
        self.contexts += 1
        self.config = config
        number = None
        if config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER":
            number = self.specialized
            self.specialized += 1
        return Context(self, memory, config, number)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": ["a", "b"], "Bindings": []}')


class Config:
    def __init__(self):
        self.cuda_graph_strategy = None
        self.strategy = None
        self.cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy.name

    def create_runtime_cache(self):
        return Cache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class Cache:
    """Holds the shapes that were compiled for, and how."""

    def __init__(self):
        self.content = b""
        self.first = None
        """The shapes of the first run of whatever uses this object."""

    def compile(self, shapes, specialized):
        found = (b"specialized" if specialized else b"") + repr(sorted(shapes.items())).encode()
        if found not in self.content:
            self.content = (self.content or b"kernels") + found

    def deserialize(self, blob):
        if not bytes(blob).startswith(b"kernels"):
            return False
        self.content += bytes(blob)
        return True

    def serialize(self):
        return bytearray(self.content or b"kernels")


class Context:
    def __init__(self, engine, memory, config, number):
        self.engine, self.config = engine, config
        self.number = number
        """Of its specialized kernels; None: it has none."""
        self.memory = memory
        self.active_optimization_profile = 0
        self.inputs, self.addresses, self.allocators = {}, {}, {}
        self.scratch = None
        self.busy = threading.Lock()
        self.first = None
        self.shape_changes = 0
        self.runs = 0

    def __del__(self):
        if self.memory:
            self.engine.trt.cudart.cudaFree(self.memory)
        self.engine.contexts -= 1

    @contextmanager
    def alone(self):
        assert self.busy.acquire(blocking=False), "a context is used by two threads at once"
        try:
            yield
        finally:
            self.busy.release()

    def set_device_memory(self, pointer, size):
        assert size >= self.engine.device_memory_size_v2
        self.scratch = pointer

    def set_optimization_profile_async(self, profile, stream):
        self.active_optimization_profile = profile
        self.inputs.clear()
        return True

    def set_input_shape(self, name, shape):
        with self.alone():
            if self.engine.profiles and name in self.engine.profiles[self.active_optimization_profile]:
                low, _, high = self.engine.profiles[self.active_optimization_profile][name]
                if not all(a <= n <= b for a, n, b in zip(low, shape, high)):
                    return False
            self.shape_changes += self.inputs.get(name) not in (None, shape)
            self.inputs[name] = shape
            return True

    def infer_shapes(self):
        return [b.name for b in self.engine.bindings.values() if b.is_input and b.name not in self.inputs]

    def get_tensor_shape(self, name):
        return self.engine.shapes(self.inputs)[name]

    def set_tensor_address(self, name, pointer):
        assert pointer % 256 == 0 or self.engine.bindings[name].on_host, "not aligned"
        self.addresses[name] = pointer
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def is_stream_capturable(self, stream):
        return self.engine.capturable

    def execute_async_v3(self, stream):
        addresses = dict(self.addresses)
        shapes = dict(self.inputs)
        assert self.scratch, "no scratch memory"

        def work():
            with self.alone():
                self.run(addresses, shapes)

        self.engine.trt.cudart.queue(stream, work)
        return True

    def array(self, binding, pointer, shape):
        dtype = np.dtype(STORAGE[binding.dtype])
        count = int(np.prod(shape))
        if not binding.on_host:
            self.engine.trt.cudart.check_range(pointer, count * dtype.itemsize, self.engine.trt.cudart.blocks)
        memory = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def run(self, addresses, shapes):
        self.runs += 1
        bindings = self.engine.bindings
        given = {n: self.array(bindings[n], addresses[n], s) for n, s in shapes.items()}
        owner = self.config.cache or self
        owner.first = owner.first or shapes
        if self.config.cache:
            self.config.cache.compile(shapes, specialized=self.number is not None)
            self.engine.misled |= self.number is None and b"specialized" in self.config.cache.content
        answers = self.engine.compute(given)
        if self.number is not None:
            answers = self.engine.fault(self.number, answers)
        if self.engine.reads_leftovers:
            left = (ctypes.c_ubyte * self.engine.device_memory_size_v2).from_address(self.scratch)
            rest = np.frombuffer(left, np.float32).sum() * 0
            answers = {name: answer if answer is None else answer + rest for name, answer in answers.items()}
        for name, answer in answers.items():
            if answer is None:  # its kernel wrote nothing
                continue
            if owner.first != shapes and answer.ndim:
                # As TensorRT-RTX has it: kernels specialized for one shape are taken for another.
                answer = answer.copy()
                answer[1:] = 0
            if self.allocators.get(name) is not None:
                size = max(answer.nbytes, 1)
                pointer = self.allocators[name].reallocate_output_async(name, 0, size, 256, 0)
                self.allocators[name].notify_shape(name, answer.shape)
            else:
                pointer = addresses[name]
            if answer.size:
                self.array(bindings[name], pointer, answer.shape)[...] = answer


class Trt:
    """The module ``tensorrt_rtx``."""

    __version__ = "1.6.1.120"
    TensorIOMode = enum("INPUT", "OUTPUT")
    TensorLocation = enum("HOST", "DEVICE")
    TensorFormat = enum("LINEAR")
    EngineInspector = object
    ExecutionContextAllocationStrategy = enum("USER_MANAGED")
    CudaGraphStrategy = enum("WHOLE_GRAPH_CAPTURE", "DISABLED")
    DynamicShapesKernelSpecializationStrategy = enum("EAGER", "NONE")
    LayerInformationFormat = enum("JSON")
    EngineInvalidityDiagnostics = enum("VERSION_MISMATCH", "UNSUPPORTED_CC")

    class ILogger:
        Severity = enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

        def __init__(self):
            pass

    class IOutputAllocator:
        def __init__(self):
            pass

    def __init__(self, cudart, make_engine):
        self.cudart = cudart
        self.make_engine = make_engine
        self.logger = None
        self.engines = []

    def say(self, severity, text):
        self.logger.log(getattr(self.ILogger.Severity, severity), text)

    def Runtime(self, logger):
        self.logger = logger
        self.runtime = SimpleNamespace(
            engine_host_code_allowed=True,
            deserialize_cuda_engine=self.deserialize,
            get_engine_validity=lambda plan: (SimpleNamespace(name="INVALID"), 2),
        )
        return self.runtime

    def deserialize(self, plan):
        assert not self.runtime.engine_host_code_allowed, "a plan may bring code for the host"
        engine = self.make_engine(self)
        if engine is None:
            self.say("WARNING", "a warning")
            self.say("ERROR", "Serialization assertion failed")
        else:
            self.engines.append(engine)
        return engine


def install(monkeypatch, make_engine, total=1 << 30):
    """Puts the stand-in where the package reaches for CUDA and TensorRT.

    Args:
        make_engine: ``(trt) -> Engine`` or None, for a plan that TensorRT refuses.
    """
    from mlflow_trt.engine import cuda, pinned, runtime_cache, trt

    # Engines of an earlier test that were not collected yet are none of this process's.
    monkeypatch.setattr(runtime_cache, "_networks", weakref.WeakValueDictionary())
    monkeypatch.setattr(pinned, "_ranges", ((), ()))
    cudart = Cudart(total)
    module = Trt(cudart, make_engine)
    monkeypatch.setattr(cuda, "cudart", cudart)
    monkeypatch.setattr(cuda, "graph_launch", cudart.cudaGraphLaunch)
    monkeypatch.setattr(cuda, "stream_synchronize", cudart.cudaStreamSynchronize)
    monkeypatch.setattr(cuda, "_memcpy", cudart.cudaMemcpyAsync)
    monkeypatch.setattr(cuda, "_get_device", cudart.cudaGetDevice)
    monkeypatch.setattr(cuda, "_set_device", cudart.cudaSetDevice)
    monkeypatch.setattr(cuda, "require_device", lambda device: None)
    monkeypatch.setattr(trt, "import_runtime", lambda name, release: module)
    return module
