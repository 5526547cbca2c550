from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mlflow_trt.engine import tensors
from mlflow_trt.errors import InputError


class OnGpu:
    """What DLPack shows of a tensor in GPU memory."""

    def __init__(self, kind=2):
        self.kind = kind

    def __dlpack_device__(self):
        if isinstance(self.kind, Exception):
            raise self.kind
        return self.kind, 0


@pytest.mark.parametrize(
    ("value", "gpu"),
    [
        (np.ones(2), False),
        (1.5, False),
        ([1, 2], False),
        (None, False),
        (OnGpu(1), False),
        (OnGpu(2), True),
        (OnGpu(13), True),
        (OnGpu(3), False),
        (OnGpu(RuntimeError("meta tensor")), False),
    ],
)
def test_on_gpu(value, gpu):
    assert tensors.on_gpu(value) is gpu


def test_kind():
    torch = pytest.importorskip("torch")
    array = np.ones(2)
    assert tensors.kind_of([]) == "numpy"
    assert tensors.kind_of([array, 1, [2]]) == "numpy"
    assert tensors.kind_of([array, torch.ones(2)]) == "torch"
    assert tensors.kind_of([torch.ones(2), OnGpu()]) == "cuda"


def test_without_torch_nothing_is_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert tensors.kind_of([np.ones(2), object()]) == "numpy"
    assert "torch" not in sys.modules


def test_torch_tensors_share_their_memory():
    torch = pytest.importorskip("torch")
    value = torch.ones(3, requires_grad=True)
    array = tensors.to_host({"x": value})["x"]
    array[0] = 5
    assert value[0] == 5
    assert tensors.to_torch(array)[0] == 5
    assert tensors.to_host({"x": 3, "y": array})["y"] is array


def test_to_host_refuses():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="'x' is on the GPU"):
        tensors.to_host({"x": OnGpu()})
    with pytest.raises(InputError, match="bfloat16"):
        tensors.to_host({"x": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(InputError, match="dense"):
        tensors.to_host({"x": torch.eye(3).to_sparse()})


def test_views_of_tensors():
    torch = pytest.importorskip("torch")
    value = torch.arange(6.0).reshape(2, 3)
    view = tensors._view_torch(value)
    assert (view.pointer, view.shape, view.dtype) == (value.data_ptr(), (2, 3), "float32")
    assert tensors._view_torch(value.T) is None
    assert tensors._view_torch(torch.ones(2, dtype=torch.bfloat16)).dtype == "bfloat16"


def test_views_by_dlpack(monkeypatch):
    # cuda.core asks producers for an order of streams that memory on the CPU does not have; -1 asks for none.
    from cuda.core import utils

    made = utils.StridedMemoryView
    unordered = SimpleNamespace(from_any_interface=lambda value, stream_ptr: made.from_any_interface(value, -1))
    monkeypatch.setattr(utils, "StridedMemoryView", unordered)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    view = tensors._view_dlpack("x", array)
    assert (view.pointer, view.shape, view.dtype) == (array.ctypes.data, (2, 3), "float32")
    assert tensors._view_dlpack("x", array.T) is None
    assert tensors._view_dlpack("x", array[:, :2]) is None
    with pytest.raises(InputError, match="DLPack"):
        tensors._view_dlpack("x", object())


def test_device_tensor_refuses(monkeypatch):
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="'x' is not on the GPU"):
        tensors.device_tensor("x", np.ones(2), 0)
    monkeypatch.setattr(tensors, "on_gpu", lambda value: True)
    with pytest.raises(InputError, match="not contiguous"):
        tensors.device_tensor("x", torch.ones(2, 3).T, 0)
    place = tensors.DeviceTensor(256, (2,), "float32", 1, None)
    monkeypatch.setattr(tensors, "_view_torch", lambda value: place)
    with pytest.raises(InputError, match="cuda:1"):
        tensors.device_tensor("x", torch.ones(2), 0)
    assert tensors.device_tensor("x", torch.ones(2), 1) is place
