"""An execution context bound to one shape, with all that one call at that shape needs.

A :class:`BoundHostContext` serves arrays in host memory. Inputs lie side by side in one page-locked block and in one
block on the GPU, outputs in two more, so that a run is one copy in, the engine, one copy out, and from the second on
one launch of a CUDA graph that holds all three. Inputs that are page-locked where they lie go to the GPU from there,
before a second graph that holds the rest. A :class:`BoundDeviceContext` serves tensors that are on the GPU already and
binds their memory.

Why a graph of our own and not ``CudaGraphStrategy.WHOLE_GRAPH_CAPTURE``: both are equally fast on the engine itself,
ours holds the copies too, and it works with full TensorRT. NVIDIA's warning about capturing (TensorRT-RTX swaps
fallback kernels for specialized ones behind a captured graph) concerns lazy specialization of dynamic shapes; contexts
here are made with ``EAGER`` or none, which also keeps the numbers that were checked the numbers that are served.
Where TensorRT says that a stream can't be captured, its own strategy is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError, TrtError
from ..plan.casts import Decode, Encode, decoder, encoder
from ..plan.manifest import Tensor
from ..plan.signature import Shape
from . import cuda, pinned
from .context import Binding, Context, Core, Key, ShapedContext, StreamResources
from .cuda import ALIGNMENT, SUCCESS, Block, Stream
from .tensors import DeviceTensor

_logger = logging.getLogger(__name__)

NAN = 0xFF
"""A byte that, over and over, is NaN in every floating dtype."""
ZERO = 0

_WORTH_A_COPY = 32 << 10
"""Bytes that a call of CUDA's should fetch on average; an estimate. Smaller rows are put together first."""


class BoundHostContext:
    """Serves arrays in host memory at one shape."""

    def __init__(self, core: Core, resources: StreamResources, key: Key, context: Context | None = None) -> None:
        self.shaped = ShapedContext(core, resources, key, context)
        self._core = core
        self.context_bytes = 0
        """What the context itself takes, once that was seen."""
        self._stream = resources.stream
        self._raw = resources.stream.raw
        self._blocks: list[Block] = []
        self._graphs: dict[bool, Any] = {}
        """By whether they copy the block of inputs to the GPU."""
        self._ran = False
        self.on_trial = False
        """Whether specialized kernels are still to be tried at its shape."""
        self.fill: int | None = None
        """The byte that scratch memory is filled with before the next runs, and the outputs with NaN; None: they are as
        the last run left them."""
        self._clears = False
        self.in_bytes = self.out_bytes = 0
        try:
            self._lay_out(core, key)
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """GPU memory that it holds, scratch not counted."""
        memory = self.shaped.memory
        return self.context_bytes + self.in_bytes + self.out_bytes + (memory.nbytes if memory else 0)

    @property
    def graph(self) -> str:
        """How it runs: ``"graph"``, ``"runtime"`` (TensorRT's own graphs) or ``"enqueue"``."""
        return "graph" if self._graphs else "runtime" if self._core.runtime_graphs else "enqueue"

    def run(self, arrays: Sequence[np.ndarray | Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Runs once. The stream slot must be the caller's, its device current.

        Args:
            arrays: Of the shapes that the context is bound to, in the interface's order; or several for an input, whose
                rows follow one another, the last one repeated as often as there is room.

        Returns:
            New arrays, in the interface's order.

        Raises:
            DeviceError: CUDA failed.
            PlanError: TensorRT failed.
        """
        copies = self._copies(arrays) if pinned.any_locked() else None
        if copies is None:
            for (encode, view), array in zip(self._inputs, arrays):
                if isinstance(array, np.ndarray):
                    encode(array, view)
                else:
                    _stack(encode, array, view)
        else:
            for target, source, size in copies:
                cuda.to_device(target, source, size, self._stream)
        if self.fill is not None:
            self.shaped.resources.fill(self.fill)
            cuda.fill(self._device_out.pointer, NAN, self._device_out.nbytes, self._stream)
        self._launch(copies is None)
        (error,) = cuda.stream_synchronize(self._raw)
        if error != SUCCESS:
            raise cuda.failure(error, "running the engine")
        self._ran = True
        if self.shaped.memory is not None:
            return self._read_data_dependent()
        return [decode(view) for decode, view in self._outputs]

    def clear_first(self) -> None:
        """Has scratch memory cleared before every run from now on."""
        self._clears = True
        self._drop_graphs()

    def capturable(self) -> bool:
        """Asks TensorRT whether this context's work can be captured; to be asked after it has run once."""
        ask = getattr(self.shaped.context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream.handle))

    def release_context(self) -> Context | None:
        """Gives back all but the context, for another one of the stream slot to take over."""
        self._drop()
        return self.shaped.give_up()

    def close(self) -> None:
        """Waits for its work and gives its memory back."""
        self._drop()
        self.shaped.give_up()

    def _lay_out(self, core: Core, key: Key) -> None:
        self._inputs: list[tuple[Encode, np.ndarray]] = []
        self._outputs: list[tuple[Decode, np.ndarray]] = []
        self._targets: list[tuple[int, np.dtype, int] | None] = []
        """Where inputs lie on the GPU: address, dtype, bytes."""
        self._capturable = self.shaped.memory is None and not any(b.on_host for b in core.outputs)
        ins = _offsets([(b, s) for b, s in zip(core.inputs, key.shapes) if not b.on_host])
        shaped_outputs = zip(core.outputs, self.shaped.output_shapes)
        outs = _offsets([(b, s) for b, s in shaped_outputs if s is not None and not b.on_host])
        self.in_bytes, self.out_bytes = ins.total, outs.total
        for total in (ins.total, outs.total):
            self._blocks.append(Block(total, pinned=True))
            self._blocks.append(Block(total))
        self._pinned_in, self._device_in, self._pinned_out, self._device_out = self._blocks
        for binding, shape in zip(core.inputs, key.shapes):
            t = binding.tensor
            encode = encoder(t.dtype, t.binding_dtype, t.name)
            if binding.on_host:
                self._inputs.append((_keep, self.shaped.host_array(binding)))
                self._targets.append(None)
                continue
            offset = ins.places[binding.name]
            target = self._device_in.pointer + offset
            self.shaped.bind(binding, target)
            self._inputs.append((encode, self._pinned_in.view(offset, shape, binding.storage)))
            self._targets.append((target, binding.storage, nbytes(binding.storage, shape)))
        for binding, known in zip(core.outputs, self.shaped.output_shapes):
            if known is None:
                continue
            decode = decoder(binding.tensor.dtype, binding.tensor.binding_dtype)
            if binding.on_host:
                view = self.shaped.host_array(binding)
            else:
                offset = outs.places[binding.name]
                self.shaped.bind(binding, self._device_out.pointer + offset)
                view = self._pinned_out.view(offset, known, binding.storage)
            self._outputs.append((decode, as_declared(view, binding.tensor)))

    def _copies(self, arrays: Sequence[np.ndarray | Sequence[np.ndarray]]) -> list[tuple[int, int, int]] | None:
        """Copies to the GPU, as (to, from, bytes), that need none on the host before; None: some input needs one."""
        copies = []
        for place, array in zip(self._targets, arrays):
            if place is None:
                continue
            target, dtype, size = place
            end = target + size
            row = source = 0
            for part in (array,) if isinstance(array, np.ndarray) else array:
                begin = pinned.address_of(part) if part.dtype == dtype else None
                if begin is None:
                    return None
                copies.append((target, begin, part.nbytes))
                target += part.nbytes
                if target < end:
                    row = part.nbytes // len(part)
                    source = begin + part.nbytes - row
            while target < end:  # the last row, as often as there is room
                copies.append((target, source, row))
                target += row
        return copies if self.in_bytes >= len(copies) * _WORTH_A_COPY else None

    def _launch(self, block: bool) -> None:
        """Queues a call; block: whether its inputs are in the block, and not on the GPU already."""
        graph = self._graphs.get(block)
        if graph is None and self._ran and self._core.own_graphs and self._capturable:
            graph = self._capture(block)
            if block and pinned.any_locked() and self.in_bytes >= _WORTH_A_COPY:
                self._capture(False)  # while the model warms up, rather than in the middle of requests
        if graph is None:
            self._enqueue(block)
            return
        (error,) = cuda.graph_launch(graph, self._raw)
        if error != SUCCESS:
            raise cuda.failure(error, "launching a CUDA graph")

    def _enqueue(self, block: bool) -> None:
        if block and self.in_bytes:
            cuda.to_device(self._device_in.pointer, self._pinned_in.pointer, self.in_bytes, self._stream)
        if self._clears:
            self.shaped.resources.fill(ZERO)
        self.shaped.enqueue()
        if self.out_bytes:
            cuda.to_host(self._pinned_out.pointer, self._device_out.pointer, self.out_bytes, self._stream)

    def _capture(self, block: bool) -> Any:
        """Makes a CUDA graph; None: it can't be, now and later."""
        try:
            graph = self._graphs[block] = cuda.capture(self._stream, lambda: self._enqueue(block))
        except TrtError as refusal:
            _logger.debug("No CUDA graph for %s: %s", self.shaped.key, refusal)
            self._capturable = False
            return None
        return graph

    def _read_data_dependent(self) -> list[np.ndarray]:
        plain = iter(self._outputs)
        arrays = []
        for binding, shape in zip(self._core.outputs, self.shaped.output_shapes):
            if shape is not None:
                decode, view = next(plain)
                arrays.append(decode(view))
            else:
                arrays.append(read_data_dependent(self.shaped, binding, self._stream))
        return arrays

    def _drop(self) -> None:
        _synchronize_quietly(self._stream)
        self._drop_graphs()
        # The views go first: they point into the blocks.
        self._inputs, self._outputs, self._targets = [], [], []
        for block in self._blocks:
            block.free()
        self._blocks = []
        self.in_bytes = self.out_bytes = 0

    def _drop_graphs(self) -> None:
        while self._graphs:
            cuda.destroy_graph(self._graphs.popitem()[1])


class BoundDeviceContext:
    """Serves tensors that are on the GPU at one shape, in their own memory."""

    graph = "enqueue"

    def __init__(self, core: Core, resources: StreamResources, key: Key, context: Context | None = None) -> None:
        self._core = core
        self.shaped = ShapedContext(core, resources, key, context)
        self.stream = resources.stream
        self.spare = resources.scratch.pointer
        """An address for what needs one and holds nothing."""
        self.context_bytes = 0
        self.on_trial = False
        """Whether specialized kernels are still to be tried at its shape."""
        self.fill: int | None = None
        """As a :class:`BoundHostContext` has it."""
        self._clears = False

    @property
    def nbytes(self) -> int:
        """GPU memory that it holds, scratch not counted."""
        return self.context_bytes + (self.shaped.memory.nbytes if self.shaped.memory else 0)

    def run(self, tensors: Sequence[DeviceTensor | None], outputs: Sequence[int]) -> None:
        """Queues the engine's work on the stream slot's stream and returns at once.

        Args:
            tensors: Inputs in the interface's order; None for a shape tensor.
            outputs: Addresses for the outputs in the interface's order; 0 for those that are not plain.
        """
        for binding, tensor in zip(self._core.inputs, tensors):
            if tensor is not None:
                self.shaped.bind(binding, tensor.pointer)
        for binding, pointer in zip(self._core.outputs, outputs):
            if pointer:
                self.shaped.bind(binding, pointer)
        if self.fill is not None:
            self.shaped.resources.fill(self.fill)
            self._poison(outputs)
        if self._clears:
            self.shaped.resources.fill(ZERO)
        self.shaped.enqueue()

    def clear_first(self) -> None:
        """Has scratch memory cleared before every run from now on."""
        self._clears = True

    def _poison(self, outputs: Sequence[int]) -> None:
        for binding, shape, pointer in zip(self._core.outputs, self.shaped.output_shapes, outputs):
            if pointer and shape is not None and (size := nbytes(binding.storage, shape)):
                cuda.fill(pointer, NAN, size, self.stream)

    def release_context(self) -> Context | None:
        """Gives back all but the context, for another one of the stream slot to take over."""
        _synchronize_quietly(self.stream)
        return self.shaped.give_up()

    def close(self) -> None:
        """Waits for its work and gives its memory back."""
        self.release_context()


@dataclass(frozen=True)
class Layout:
    """Where tensors lie in a block."""

    places: dict[str, int]
    """Binding → offset in bytes."""
    total: int
    """Bytes."""


def _offsets(bindings: Sequence[tuple[Binding, Shape]]) -> Layout:
    places: dict[str, int] = {}
    total = 0
    for binding, shape in bindings:
        places[binding.name] = total
        total += aligned(nbytes(binding.storage, shape))
    return Layout(places, total)


def nbytes(dtype: np.dtype, shape: Shape) -> int:
    """Bytes of an array."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


def aligned(size: int) -> int:
    """The next multiple of what TensorRT asks of addresses, at least one."""
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT


def as_declared(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Drops or adds dimensions of 1: TensorRT gives a scalar as () or (1,), and the manifest says which it is."""
    rank = len(tensor.shape)
    return array.reshape((1,) * rank) if array.ndim != rank and array.size == 1 else array


def read_data_dependent(shaped: ShapedContext, binding: Binding, stream: Stream) -> np.ndarray:
    """Copies an output whose size the data decided to the host; the engine's work must be done."""
    memory = shaped.memory
    if memory is None or binding.name not in memory.shapes:
        raise DeviceError(
            f"TensorRT did not tell the shape of the output {binding.name!r}.",
            "a shape for every output",
            "report this with the model's layers",
        )
    shape = memory.shapes[binding.name]
    array = np.empty(shape, binding.storage)
    if array.size:
        cuda.to_host(array.ctypes.data, memory.blocks[binding.name].pointer, array.nbytes, stream)
        stream.synchronize()
    t = binding.tensor
    return as_declared(array if t.dtype == t.binding_dtype else decoder(t.dtype, t.binding_dtype)(array), t)


def _stack(encode: Encode, parts: Sequence[np.ndarray], view: np.ndarray) -> None:
    start = 0
    for part in parts:
        encode(part, view[start : start + len(part)])
        start += len(part)
    view[start:] = view[start - 1]


def _keep(array: np.ndarray, out: np.ndarray) -> None:
    """A shape tensor's content is part of the key: it is in place already."""


def _synchronize_quietly(stream: Stream) -> None:
    """Before memory is freed, whether or not the work before succeeded."""
    try:
        stream.synchronize()
    except DeviceError as error:
        _logger.debug("While giving memory back: %s", error)
