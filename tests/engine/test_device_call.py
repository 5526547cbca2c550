"""Calls with tensors on the GPU, on the stand-in: torch's memory on the CPU plays the GPU's (see standin.py)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from affine import AFFINE, affine, write_plan
from interfaces import interface, tensor
from manifests import host
from standin import Binding, Engine

from mlflow_trt.engine import tensors
from mlflow_trt.engine.engine import TensorRTEngine
from mlflow_trt.engine.tensors import DeviceTensor
from mlflow_trt.errors import InputError

torch = pytest.importorskip("torch")


class TorchOnGpu:
    """Torch, whose tensors for "cuda:0" lie in the stand-in's memory."""

    Tensor = torch.Tensor
    cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77))

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, dtype, device):
        assert device == "cuda:0"
        return self.register(torch.empty(shape, dtype=dtype))

    def as_tensor(self, value, dtype, device):
        return self.register(torch.as_tensor(value, dtype=dtype))

    def register(self, made):
        count = max(made.numel(), 1)
        _, address = self.module.cudart.cudaMalloc(count * made.element_size())
        memory = self.module.cudart.blocks[address]
        placed = torch.frombuffer(memory, dtype=made.dtype, count=count)[: made.numel()].reshape(made.shape)
        placed.copy_(made)
        return placed


@pytest.fixture
def on_gpu(monkeypatch):
    def install(make_engine=affine):
        module = standin.install(monkeypatch, make_engine)
        fake = TorchOnGpu(module)
        monkeypatch.setitem(sys.modules, "torch", fake)

        def inside(value):
            blocks = module.cudart.blocks.items()
            return isinstance(value, torch.Tensor) and any(b <= value.data_ptr() < b + len(m) for b, m in blocks)

        monkeypatch.setattr(tensors, "on_gpu", inside)

        def view(value):
            name = str(value.dtype).removeprefix("torch.")
            if not value.is_contiguous():
                return None
            return DeviceTensor(value.data_ptr(), tuple(value.shape), name, 0, value)

        monkeypatch.setattr(tensors, "_view_torch", view)
        return module, fake

    return install


def test_tensors_are_used_where_they_are(tmp_path, on_gpu):
    module, fake = on_gpu()
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        for n in (2, 3, 2):
            x = fake.register(torch.arange(n * 3, dtype=torch.float32).reshape(n, 3))
            answer = engine(x)
            assert torch.equal(answer["y"], x * 2 + 1)
            assert torch.equal(answer["z"], x.sum(1))
            assert answer["x"] is x
        assert module.cudart.launches == 0
        assert module.engines[0].contexts == 2
        assert not module.cudart.pinned  # nothing went through the host


def test_a_slice_is_copied_to_an_aligned_address(tmp_path, on_gpu):
    _, fake = on_gpu()
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        x = fake.register(torch.arange(12, dtype=torch.float32).reshape(4, 3))
        original = torch.Tensor.to

        def placed(self, *args, **settings):
            found = original(self, *args, **settings)
            return fake.register(found) if settings.get("copy") else found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "to", placed)
            assert torch.equal(engine(x[1:])["y"], x[1:] * 2 + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.register(torch.ones(2, 3, dtype=torch.float64)), "float64"),
        (lambda f: f.register(torch.ones(3, 2)).T, "not contiguous"),
        (lambda f: f.register(torch.ones(33, 3)), "above the maximum"),
        (lambda f: f.register(torch.ones(2, 4)), "fixed"),
    ],
    ids=["dtype", "strides", "too large", "size"],
)
def test_bad_tensors_are_refused(tmp_path, on_gpu, make, message):
    module, fake = on_gpu()
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        with pytest.raises(InputError, match=message):
            engine(make(fake))
        assert module.engines[0].contexts == 0


def test_tensors_on_both_sides_are_refused(tmp_path, on_gpu):
    def add(trt):
        return Engine(
            trt,
            [Binding("a", "FLOAT", (3,), True), Binding("b", "FLOAT", (3,), True), Binding("o", "FLOAT", (3,), False)],
            [{"a": ((3,),) * 3, "b": ((3,),) * 3}],
            lambda given: {"o": given["a"] + given["b"]},
            lambda shapes: {"o": (3,)},
        )

    _, fake = on_gpu(add)
    face = interface([tensor("a", (3,)), tensor("b", (3,))], [tensor("o", (3,))])
    with (
        TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine,
        pytest.raises(InputError, match="'b' is not on the GPU"),
    ):
        engine(fake.register(torch.ones(3)), torch.ones(3))


def test_bfloat16_bindings_take_and_give_float32(tmp_path, on_gpu):
    def echo(trt):
        return Engine(
            trt,
            [Binding("x", "BF16", (4,), True), Binding("o", "BF16", (4,), False)],
            [{"x": ((4,),) * 3}],
            lambda given: {"o": given["x"]},
            lambda shapes: {"o": (4,)},
        )

    _, fake = on_gpu(echo)
    face = interface([tensor("x", (4,), "float32", "bfloat16")], [tensor("o", (4,), "float32", "bfloat16")])
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        x = fake.register(torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16))
        answer = engine(x)
        assert answer.dtype == torch.float32
        assert answer.tolist() == [1, 2, 3, 4]


def test_data_dependent_output(tmp_path, on_gpu):
    def positive(trt):
        return Engine(
            trt,
            [Binding("x", "FLOAT", (-1,), True), Binding("o", "FLOAT", (-1,), False)],
            [{"x": ((1,), (4,), (100,))}],
            lambda given: {"o": given["x"][given["x"] > 0]},
            lambda shapes: {"o": (-1,)},
        )

    _, fake = on_gpu(positive)
    face = interface([tensor("x", ("n",))], [tensor("o", ("m",))])
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        for values in ([1, -1, 2], [-1], [5, 6, 7, 8]):
            x = fake.register(torch.tensor(values, dtype=torch.float32))
            assert torch.equal(engine(x), x[x > 0])


def test_other_libraries_tensors_answer_numpy(tmp_path, on_gpu, monkeypatch):
    module, fake = on_gpu()

    class Other:
        """What another library's GPU array shows of itself."""

        def __init__(self, made):
            self.made = made

    x = fake.register(torch.arange(6, dtype=torch.float32).reshape(2, 3))
    monkeypatch.setattr(tensors, "on_gpu", lambda v: isinstance(v, Other))
    monkeypatch.setattr(
        tensors, "_view_dlpack", lambda name, v: DeviceTensor(v.made.data_ptr(), (2, 3), "float32", 0, v)
    )
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        used = module.cudart.used
        answer = engine(Other(x))
        np.testing.assert_array_equal(answer["y"], x.numpy() * 2 + 1)
        assert isinstance(answer["z"], np.ndarray)
        engine(Other(x))
        assert module.cudart.used - used <= engine.memory["contexts"] + engine.memory["scratch"]
