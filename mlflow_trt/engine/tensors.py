"""Same kind in, same kind out: numpy arrays, torch tensors on the CPU, tensors on the GPU.

Torch is never imported here. A caller who hands in torch tensors has imported it, so it is looked up where Python keeps
imported modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError

Kind = Literal["numpy", "torch", "cuda"]
"""Arrays in host memory, torch tensors in host memory, tensors in GPU memory."""

_CUDA_DEVICES = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""


@dataclass(frozen=True)
class DeviceTensor:
    """A contiguous tensor in GPU memory, by whatever library made it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    """``"bfloat16"``, ``"float32"``, …"""
    device: int
    owner: Any
    """Keeps the memory alive."""


def kind_of(values: Iterable[Any]) -> Kind:
    """Says what a native call's tensors are: on the GPU if any is, torch if any is a torch tensor, else numpy."""
    kind: Kind = "numpy"
    for value in values:
        if type(value) is np.ndarray:
            continue
        if on_gpu(value):
            return "cuda"
        if is_torch(value):
            kind = "torch"
    return kind


def is_torch(value: Any) -> bool:
    """Whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_gpu(value: Any) -> bool:
    """Whether this is a tensor in GPU memory, by DLPack."""
    locate = getattr(value, "__dlpack_device__", None)
    if locate is None or isinstance(value, np.ndarray):
        return False
    try:
        return int(locate()[0]) in _CUDA_DEVICES
    except (TypeError, ValueError, RuntimeError):  # no storage, meta tensors: no memory to speak of
        return False


def to_host(tensors: Mapping[str, Any], where: str = "host memory") -> dict[str, Any]:
    """Turns torch tensors into numpy arrays that share their memory; leaves everything else.

    Args:
        tensors: By input name.
        where: What the arrays are for, in messages.

    Raises:
        InputError: A tensor is on a GPU, or of a dtype that numpy does not have.
    """
    converted = dict(tensors)
    for name, value in tensors.items():
        if on_gpu(value):
            raise InputError(f"Input {name!r} is on the GPU.", f"all inputs in {where}", f"copy it: {name}.cpu()")
        if is_torch(value):
            try:
                converted[name] = value.detach().numpy()
            except (TypeError, RuntimeError) as error:
                raise InputError(
                    f"Input {name!r} is a torch tensor of dtype {value.dtype} that numpy can't share: {error}.",
                    "a dense tensor of a dtype that numpy has",
                    f"convert it: {name}.float()" if "bfloat16" in str(value.dtype) else "convert it first",
                ) from error
    return converted


def to_torch(array: np.ndarray) -> Any:
    """Returns a torch tensor on the array's memory."""
    return sys.modules["torch"].from_numpy(array)


def device_tensor(name: str, value: Any, device: int) -> DeviceTensor:
    """Looks at a tensor in GPU memory without copying it.

    Args:
        name: The input's name, for messages.
        value: A torch tensor, or anything that speaks DLPack.
        device: Index of the GPU that the engine is on.

    Raises:
        InputError: It is on the CPU or another GPU, or not contiguous.
    """
    if not on_gpu(value):
        raise InputError(
            f"Input {name!r} is not on the GPU, and others of this call are.",
            f"all tensors on cuda:{device}, or all in host memory",
            f"move it: {name}.to('cuda:{device}')",
        )
    tensor = _view_torch(value) if is_torch(value) else _view_dlpack(name, value)
    if tensor is None:
        raise InputError(f"Input {name!r} is not contiguous.", "a contiguous tensor", f"copy it: {name}.contiguous()")
    if tensor.device != device:
        raise InputError(
            f"Input {name!r} is on cuda:{tensor.device}.",
            f"cuda:{device}, which the engine was loaded on",
            f"move it, or load the model with device={tensor.device}",
        )
    return tensor


def _view_torch(value: Any) -> DeviceTensor | None:
    value = value.detach()
    if not value.is_contiguous():
        return None
    return DeviceTensor(
        value.data_ptr(), tuple(value.shape), str(value.dtype).removeprefix("torch."), value.device.index, value
    )


def _view_dlpack(name: str, value: Any) -> DeviceTensor | None:
    # Imported here: 0.2 s that only callers with other libraries' GPU tensors pay.
    from cuda.core.utils import StridedMemoryView

    try:
        # 1 is the legacy default stream: its owner orders its work before that, and the engine's stream waits for it.
        # Releases before 1.0 have the constructor only.
        make = getattr(StridedMemoryView, "from_any_interface", StridedMemoryView)
        view = make(value, stream_ptr=1)
    except (BufferError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"Input {name!r} is a {type(value).__name__} that can't be read by DLPack: {error}.",
            "a dense tensor on the GPU",
            "convert it to a torch tensor or a numpy array",
        ) from error
    shape = tuple(int(n) for n in view.shape)
    if view.strides is not None and tuple(view.strides) != _contiguous_strides(shape):
        return None
    return DeviceTensor(int(view.ptr), shape, str(view.dtype), int(view.device_id), view)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
