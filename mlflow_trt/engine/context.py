"""The engine and its execution contexts on the GPU: what every bound context is made of.

A context is made without scratch memory of its own and works in its stream slot's. It is bound once: profile, shapes,
content of shape tensors, and an allocator for the outputs whose size only the data decide.

With TensorRT-RTX a context keeps its shape for life: kernels of one shape must not meet another
(:mod:`mlflow_trt.engine.runtime_cache`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import TrtError
from ..plan.casts import storage
from ..plan.manifest import Interface, Tensor
from ..plan.signature import Shape, Shapes
from . import cuda
from .cuda import Block, Stream
from .runtime_cache import Kernels, RuntimeCache
from .trt import Deserialized

_logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """What a context is bound to; a tuple, since it is hashed at every call."""

    shapes: Shapes
    """Of all inputs, in the interface's order."""
    profile: int
    values: tuple[bytes, ...] = ()
    """The content of shape tensors, inputs that TensorRT reads on the CPU: they decide shapes as sizes do."""
    on_gpu: bool = False
    specialized: bool = True
    """Whether TensorRT-RTX may compile kernels for these shapes (:mod:`mlflow_trt.engine.specialization`)."""


@dataclass(frozen=True)
class Binding:
    """One of the engine's I/O tensors."""

    tensor: Tensor
    storage: np.dtype
    on_host: bool
    """A shape tensor: TensorRT reads or writes it in host memory."""

    @property
    def name(self) -> str:
        """The engine's name for it."""
        return self.tensor.binding


class StreamResources:
    """What the bound contexts of one stream slot share: a stream, and scratch memory that one uses at a time."""

    def __init__(self, scratch: int) -> None:
        self.stream = Stream()
        try:
            self.scratch = Block(scratch)
        except TrtError:
            self.stream.close()
            raise

    def fill(self, byte: int) -> None:
        """Fills the scratch memory, in the stream's order."""
        cuda.fill(self.scratch.pointer, byte, self.scratch.nbytes, self.stream)

    def close(self) -> None:
        """Gives both back; the stream's work must be done."""
        self.scratch.free()
        self.stream.close()


@dataclass(frozen=True)
class Context:
    """An execution context, and the runtime cache that it compiles into."""

    raw: Any
    """TensorRT's own."""
    cache: RuntimeCache | None = None
    """TensorRT-RTX; None: it has none."""
    config: Any = None
    """TensorRT-RTX: kept for as long as the context."""


class Core:
    """A deserialized engine with what all its bound contexts need.

    Args:
        loaded: The engine.
        interface: Inputs and outputs.
        cuda_graphs: Whether bound contexts may use CUDA graphs at all.
    """

    def __init__(self, loaded: Deserialized, interface: Interface, cuda_graphs: bool = True) -> None:
        self.loaded = loaded
        self.engine = loaded.engine
        trt = self._trt = loaded.trt
        self.inputs = tuple(self._binding(t) for t in interface.inputs)
        self.outputs = tuple(self._binding(t) for t in interface.outputs)
        self.scratch = max(int(self.engine.device_memory_size_v2), 0)
        self.own_graphs = cuda_graphs
        self.runtime_graphs = False
        self.is_rtx = hasattr(self.engine, "create_runtime_config") and hasattr(trt, "CudaGraphStrategy")
        self.specializes = self.is_rtx and any(isinstance(n, str) for t in interface.inputs for n in t.shape)
        """Whether kernels for one shape differ from those for all."""
        self.kernels: Kernels | None = None
        """TensorRT-RTX's, shared with other engines of the network; None: there are none."""

    @property
    def reshapes(self) -> bool:
        """Whether a context may be given another shape."""
        return not self.is_rtx

    def create_context(self, resources: StreamResources, key: Key) -> Context:
        """Makes an execution context for a key's shapes that works in a stream slot's scratch memory.

        Raises:
            OutOfMemory: The GPU's memory does not suffice.
            PlanError: TensorRT refused.
        """
        cache = config = None
        if self.is_rtx:
            config = self._make_config(self._trt, key.specialized)
            if self.kernels is not None:
                shapes = key._replace(on_gpu=False)
                cache = self.kernels.attach(self.loaded, config, shapes, key.specialized)
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.loaded.error("creating an execution context")
        context.set_device_memory(resources.scratch.pointer, resources.scratch.nbytes)
        return Context(context, cache, config)

    def release(self) -> None:
        """Lets go of everything in the order that TensorRT asks for; no context may be left."""
        self.engine = self.kernels = None
        self.loaded.release()

    def use_runtime_graphs(self) -> bool:
        """Leaves CUDA graphs to TensorRT-RTX in contexts that are made from now on; False if it has none."""
        self.own_graphs = False
        if self.is_rtx and not self.runtime_graphs:
            self.runtime_graphs = True
            return True
        return False

    def _binding(self, tensor: Tensor) -> Binding:
        return Binding(
            tensor,
            storage(tensor.binding_dtype, repr(tensor.name)),
            self.engine.get_tensor_location(tensor.binding) == self._trt.TensorLocation.HOST,
        )

    def _make_config(self, trt: Any, specialized: bool) -> Any:
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = (
            trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if self.runtime_graphs else trt.CudaGraphStrategy.DISABLED
        )
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        # Never lazily: the kernels that were checked are the ones that answer later.
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if specialized else strategies.NONE
        return config


class OutputMemory:
    """Memory for outputs whose size only the data decide: grows as TensorRT asks, and is told the shape in the end."""

    def __init__(self, trt: Any) -> None:
        self.blocks: dict[str, Block] = {}
        self.shapes: dict[str, Shape] = {}
        memory = self

        class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output_async(self, name: str, old: int, size: int, alignment: int, stream: int) -> int:
                return memory.grow(name, int(size))

            def reallocate_output(self, name: str, old: int, size: int, alignment: int) -> int:
                return memory.grow(name, int(size))

            def notify_shape(self, name: str, shape: Any) -> None:
                memory.shapes[name] = tuple(int(n) for n in shape)

        self.allocator = Allocator()

    def grow(self, name: str, size: int) -> int:
        """Returns the address of at least ``size`` bytes, or 0 if there is not that much."""
        block = self.blocks.get(name)
        if block is None or block.nbytes < size:
            try:
                grown = Block(size)
            except TrtError as error:
                # TensorRT takes 0 for "no memory" and fails the call; an exception can't pass through it.
                _logger.debug("An output of %d bytes: %s", size, error)
                return 0
            if block is not None:
                block.free()
            block = self.blocks[name] = grown
        return block.pointer

    @property
    def nbytes(self) -> int:
        """GPU memory that is held."""
        return sum(block.nbytes for block in self.blocks.values())

    def close(self) -> None:
        """Gives it back."""
        for block in self.blocks.values():
            block.free()
        self.blocks.clear()


class ShapedContext:
    """A context with a profile, shapes, and memory for what is not a plain output on the GPU."""

    def __init__(self, core: Core, resources: StreamResources, key: Key, context: Context | None = None) -> None:
        self.core = core
        self.resources = resources
        self.key = key
        self._made: Context | None = core.create_context(resources, key) if context is None else context
        self.context: Any = self._made.raw
        self._set_profile()
        self._host: dict[str, np.ndarray] = {}
        values = iter(key.values)
        for binding, shape in zip(core.inputs, key.shapes):
            # TensorRT returns False where a shape does not fit; it takes a static input's shape too.
            if not self.context.set_input_shape(binding.name, shape):
                raise core.loaded.error(f"setting the shape of {binding.name!r} to {shape}")
            if binding.on_host:
                # Kept: TensorRT reads it during every later enqueue.
                array = np.frombuffer(next(values), binding.storage).reshape(shape).copy()
                self._bind_host(binding, array)
        try:
            missing = self.context.infer_shapes()
        except RuntimeError as error:
            raise core.loaded.error(f"inferring shapes ({error})") from error
        if missing:
            raise core.loaded.error(f"inferring shapes, where {', '.join(missing)} is not known")
        self.output_shapes: list[Shape | None] = []
        self.memory: OutputMemory | None = None
        for binding in core.outputs:
            shape = tuple(int(n) for n in self.context.get_tensor_shape(binding.name))
            known = all(n >= 0 for n in shape)
            self.output_shapes.append(shape if known else None)
            if binding.on_host and known:
                self._bind_host(binding, np.zeros(shape, binding.storage))
            elif not known:
                self.memory = self.memory or OutputMemory(core.loaded.trt)
                if not self.context.set_output_allocator(binding.name, self.memory.allocator):
                    raise core.loaded.error(f"giving {binding.name!r} an output allocator")

    def host_array(self, binding: Binding) -> np.ndarray:
        """The memory of a shape tensor."""
        return self._host[binding.name]

    def bind(self, binding: Binding, pointer: int) -> None:
        """Gives a binding its address."""
        if not self.context.set_tensor_address(binding.name, pointer):
            raise self.core.loaded.error(f"binding {binding.name!r}")

    def enqueue(self) -> None:
        """Queues the engine's work on the stream slot's stream."""
        if not self.context.execute_async_v3(self.resources.stream.handle):
            raise self.core.loaded.error("running the engine")

    def keep_kernels(self) -> None:
        """Lets later contexts have what this one compiled; after its first run."""
        if self._made is not None and self._made.cache is not None and self.core.kernels is not None:
            self.core.kernels.learn(self._made.cache)

    def give_up(self) -> Context | None:
        """Gives back everything but the context, which another one may take over."""
        if self.memory is not None:
            for binding, shape in zip(self.core.outputs, self.output_shapes):
                if shape is None:
                    self.context.set_output_allocator(binding.name, None)
            self.memory.close()
        made, self._made, self.context = self._made, None, None
        return made

    def _bind_host(self, binding: Binding, array: np.ndarray) -> None:
        self._host[binding.name] = array if array.size else np.zeros(1, binding.storage)
        self.bind(binding, self._host[binding.name].ctypes.data)

    def _set_profile(self) -> None:
        profile, stream = self.key.profile, self.resources.stream
        if self.core.engine.num_optimization_profiles > 1 and self.context.active_optimization_profile != profile:
            if not self.context.set_optimization_profile_async(profile, stream.handle):
                raise self.core.loaded.error(f"choosing optimization profile {profile}")
            stream.synchronize()
