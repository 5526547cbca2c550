"""A call whose tensors are on the GPU already: used where they are, in the order of the caller's stream."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..plan.casts import decoder
from ..plan.signature import CallSignature, Shape
from . import cuda
from .bound_contexts import BoundDeviceContext, aligned, as_declared, nbytes, read_data_dependent
from .context import Binding, Core, Key
from .cuda import ALIGNMENT, Block, Stream
from .tensors import DeviceTensor, device_tensor, is_torch

_LEGACY_STREAM = 1
"""``cudaStreamLegacy``: what DLPack producers other than torch are asked to order their work before."""


class GpuCall:
    """One call: inputs checked and located, outputs allocated and given back when it runs.

    Args:
        core: The engine.
        call_signature: Checks shapes and chooses the profile.
        given: What the caller gave, by input name.
        device: Index of the engine's GPU.

    Raises:
        InputError: A tensor is elsewhere, not contiguous, or does not fit the interface.
    """

    def __init__(self, core: Core, call_signature: CallSignature, given: Mapping[str, Any], device: int) -> None:
        self._core = core
        self._device = device
        self._torch = sys.modules.get("torch") if any(is_torch(v) for v in given.values()) else None
        tensors: list[DeviceTensor | None] = []
        shapes: list[Shape] = []
        values: list[bytes] = []
        for binding in core.inputs:
            name = binding.tensor.name
            if binding.on_host:
                array = self._shape_tensor(binding, given[name])
                tensors.append(None)
                shapes.append(array.shape)
                values.append(array.tobytes())
            else:
                tensor = self._tensor(binding, given[name])
                tensors.append(tensor)
                shapes.append(tensor.shape)
        self._tensors = tensors
        self.key = Key(tuple(shapes), call_signature.profile_of(tuple(shapes)), tuple(values), True)

    def run(self, bound: BoundDeviceContext) -> dict[str, Any]:
        """Queues the call. With torch the answer is in the order of its current stream; else it is complete.

        Returns:
            Torch tensors on the GPU, or numpy arrays, by output name.
        """
        stream = bound.stream
        if self._torch is None:
            return self._answer_numpy(bound, stream)
        return self._answer_torch(bound, stream)

    def inputs(self, bound: BoundDeviceContext) -> list[np.ndarray]:
        """Copies of the tensors in host memory, as raw bits where numpy has no such dtype; after a run."""
        arrays = []
        for binding, tensor in zip(self._core.inputs, self._tensors):
            if tensor is not None:
                array = np.empty(tensor.shape, binding.storage)
                if array.size:
                    cuda.to_host(array.ctypes.data, tensor.pointer, array.nbytes, bound.stream)
                arrays.append(array)
        bound.stream.synchronize()
        return arrays

    def outputs(self, answer: Mapping[str, Any]) -> list[np.ndarray]:
        """An answer's tensors in host memory, in the interface's order."""
        values = [answer[binding.tensor.name] for binding in self._core.outputs]
        return [value.cpu().numpy() if is_torch(value) else np.asarray(value) for value in values]

    def _answer_torch(self, bound: BoundDeviceContext, stream: Stream) -> dict[str, Any]:
        torch: Any = self._torch
        caller = int(torch.cuda.current_stream(self._device).cuda_stream)
        where = f"cuda:{self._device}"
        answer: dict[str, Any] = {}
        pointers = []
        for binding, shape in zip(self._core.outputs, bound.shaped.output_shapes):
            if shape is None or binding.on_host:
                pointers.append(0)
                continue
            out = torch.empty(shape, dtype=getattr(torch, binding.tensor.binding_dtype), device=where)
            answer[binding.tensor.name] = out
            # An empty tensor has no memory, and TensorRT wants an address all the same.
            pointers.append(out.data_ptr() or bound.spare)
        stream.wait_for(caller)
        bound.run(self._tensors, pointers)
        for binding, shape in zip(self._core.outputs, bound.shaped.output_shapes):
            if shape is None:
                answer[binding.tensor.name] = self._copy_data_dependent(bound, binding, stream, where)
            elif binding.on_host:
                stream.synchronize()
                answer[binding.tensor.name] = torch.from_numpy(bound.shaped.host_array(binding).copy()).to(where)
        stream.hold_up(caller)
        for binding in self._core.outputs:
            t = binding.tensor
            out = answer[t.name].to(getattr(torch, t.dtype))
            rank = len(t.shape)
            answer[t.name] = out.reshape((1,) * rank) if out.dim() != rank and out.numel() == 1 else out
        return answer

    def _copy_data_dependent(self, bound: BoundDeviceContext, binding: Binding, stream: Stream, where: str) -> Any:
        torch: Any = self._torch
        stream.synchronize()
        memory = bound.shaped.memory
        assert memory is not None
        shape = memory.shapes[binding.name]
        out = torch.empty(shape, dtype=getattr(torch, binding.tensor.binding_dtype), device=where)
        if out.numel():
            # torch.empty may hand out memory that earlier work on the caller's stream still uses: that comes first.
            stream.wait_for(int(torch.cuda.current_stream(self._device).cuda_stream))
            size = nbytes(binding.storage, shape)
            cuda.on_device(out.data_ptr(), memory.blocks[binding.name].pointer, size, stream)
        return out

    def _answer_numpy(self, bound: BoundDeviceContext, stream: Stream) -> dict[str, np.ndarray]:
        shapes = bound.shaped.output_shapes
        plain = [(b, s) for b, s in zip(self._core.outputs, shapes) if s is not None and not b.on_host]
        memory = Block(sum(aligned(nbytes(b.storage, s)) for b, s in plain))
        try:
            places: dict[str, int] = {}
            pointer = memory.pointer
            for binding, shape in plain:
                places[binding.name] = pointer
                pointer += aligned(nbytes(binding.storage, shape))
            stream.wait_for(_LEGACY_STREAM)
            bound.run(self._tensors, [places.get(b.name, 0) for b in self._core.outputs])
            arrays: dict[str, np.ndarray] = {}
            for binding, shape in plain:
                array = np.empty(shape, binding.storage)
                if array.size:
                    cuda.to_host(array.ctypes.data, places[binding.name], array.nbytes, stream)
                arrays[binding.name] = array
            stream.synchronize()
            return {b.tensor.name: self._host_answer(bound, b, arrays.get(b.name), stream) for b in self._core.outputs}
        finally:
            memory.free()

    def _host_answer(
        self, bound: BoundDeviceContext, binding: Binding, array: np.ndarray | None, stream: Stream
    ) -> np.ndarray:
        if array is None:
            if not binding.on_host:
                return read_data_dependent(bound.shaped, binding, stream)
            array = bound.shaped.host_array(binding)
        t = binding.tensor
        return as_declared(decoder(t.dtype, t.binding_dtype)(array), t)

    def _tensor(self, binding: Binding, value: Any) -> DeviceTensor:
        t = binding.tensor
        torch: Any = self._torch
        if torch is not None and isinstance(value, (bool, int, float)):
            value = torch.as_tensor(value, dtype=getattr(torch, t.binding_dtype), device=f"cuda:{self._device}")
        tensor = device_tensor(t.name, value, self._device)
        if tensor.dtype not in (t.binding_dtype, t.dtype):
            raise InputError(
                f"Input {t.name!r} has the dtype {tensor.dtype}.",
                t.dtype if t.dtype == t.binding_dtype else f"{t.dtype} or {t.binding_dtype}",
                f"convert it: {t.name}.to(torch.{t.dtype})",
            )
        if tensor.dtype == t.binding_dtype and tensor.pointer % ALIGNMENT == 0:
            return tensor
        if torch is None:
            raise InputError(
                f"Input {t.name!r} has the dtype {tensor.dtype} and lies at the address {tensor.pointer:#x}.",
                f"{t.binding_dtype}, at a multiple of {ALIGNMENT} bytes, which TensorRT asks for",
                "give a copy of it, or a torch tensor",
            )
        # A slice of another tensor, or a dtype that the engine holds otherwise: one copy on the GPU.
        copy = tensor.owner.to(getattr(torch, t.binding_dtype), copy=True).contiguous()
        return device_tensor(t.name, copy, self._device)

    @staticmethod
    def _shape_tensor(binding: Binding, value: Any) -> np.ndarray:
        if hasattr(value, "cpu"):
            value = value.cpu()
        return np.asarray(value, binding.storage, order="C")
