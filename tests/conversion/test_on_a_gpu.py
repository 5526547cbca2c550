# ruff: noqa: E402
"""On a GPU: the build in this process, plans as any TensorRT program loads them, and refitting."""

from __future__ import annotations

import base64

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import mlflow_trt
from mlflow_trt import Input
from mlflow_trt.conversion import core
from mlflow_trt.conversion.precision import prepare
from mlflow_trt.conversion.structure import computed_outputs

from .models import Attention, Cnn, Gated

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trt():
    import torch_tensorrt  # noqa: F401  (gives tensorrt_rtx the name tensorrt)

    return __import__("tensorrt")


@pytest.fixture(scope="module")
def plan():
    return mlflow_trt.convert(Cnn(), [Input(((1, 4, 8), 3, 8, 8))], precision="fp32")


def run(trt, engine, inputs, outputs):
    """Runs an engine with torch's memory, by binding name."""
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    held = {}
    for name, array in inputs.items():
        held[name] = torch.from_numpy(array).cuda()
        assert context.set_input_shape(name, tuple(array.shape))
        assert context.set_tensor_address(name, held[name].data_ptr())
    for name, array in outputs.items():
        held[name] = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device="cuda")
        assert context.set_tensor_address(name, held[name].data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {name: held[name].cpu().numpy() for name in outputs}


FP32 = 2e-3
"""TensorRT-RTX computes float32 products in TF32 on an H100, whatever the flag says (benchmarks/specialization.py)."""


def check(trt, plan, engine, limit):
    for _, _, inputs, outputs in plan.golden.points():
        for name, actual in run(trt, engine, inputs, outputs).items():
            expected = outputs[name]
            assert np.linalg.norm(actual - expected) <= limit * np.linalg.norm(expected), name


def test_built_for_this_gpu(plan):
    major, minor = torch.cuda.get_device_capability()
    assert plan.record.capabilities == (f"{major}.{minor}",)
    assert plan.record.built_on.gpu == torch.cuda.get_device_name()


def test_raw_bytes_to_a_file_and_back(trt, plan, tmp_path):
    """Any TensorRT program of the same runtime and release loads the file."""
    path = plan.save(tmp_path / "model.engine")
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(path.read_bytes())
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["x", "output0"]
    check(trt, plan, engine, FP32)


def test_encoded_engine(trt, plan):
    """What Torch-TensorRT keeps in its own modules: base64 of the same bytes."""
    from torch_tensorrt.dynamo._refit import get_engine_from_encoded_engine

    encoded = base64.b64encode(plan.serialized).decode()
    check(trt, plan, get_engine_from_encoded_engine(encoded, trt.Runtime(trt.Logger())), FP32)


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 2e-3), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_precisions(trt, precision, limit):
    plan = mlflow_trt.convert(Cnn().cuda(), [Input(((1, 4, 8), 3, 8, 8))], precision=precision)
    check(trt, plan, trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized), limit)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("fp16", 1e-2)])
def test_attention(trt, precision, limit):
    spec = Input(((1, 2, 4), (2, 8, 16)), "int64")
    ids = torch.randint(0, 50, (4, 16))
    mask = torch.ones(4, 16, dtype=torch.int64)
    mask[1:, 9:] = 0
    mask[:, 0] = 1
    plan = mlflow_trt.convert(Attention(), [spec, spec], precision=precision, golden_inputs=[(ids, mask)])
    check(trt, plan, trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized), limit)


@pytest.mark.parametrize(
    ("tail", "precision"),
    [("relu6", "fp32"), ("relu", "fp32"), ("abs", "fp32"), ("clamp", "fp32"), ("maximum", "fp32"), ("relu", "bf16")],
)
def test_a_maximum_of_a_gated_product_is_not_lost(trt, tail, precision):
    """TensorRT-RTX answers the product itself (benchmarks/maxima.py)."""
    functions = {
        "relu6": torch.nn.functional.relu6,
        "relu": lambda v: torch.nn.functional.relu(v, inplace=True),
        "abs": torch.abs,
        "clamp": lambda v: v.clamp(-0.1, 0.1),
        "maximum": lambda v: torch.maximum(v, torch.zeros(1, device=v.device)),
    }
    plan = mlflow_trt.convert(
        Gated(functions[tail], channels=228), [Input(((1, 4, 8), 228, 8, 8))], precision=precision
    )
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized)
    check(trt, plan, engine, FP32 if precision == "fp32" else 4e-2)


def test_unused_input_stays_a_binding(trt):
    from .models import Two

    plan = mlflow_trt.convert(Two(lambda a, b: a * 2), [Input((2, 3)), Input((4,))])
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized)
    assert {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)} == {"a", "b", "output0"}


def test_layer_table(trt, plan):
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized)
    table = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    assert len(table) > 200


def test_refit(trt):
    """immutable_weights=False: the same engine with other weights, by Torch-TensorRT's own refit."""
    from torch_tensorrt.dynamo._compiler import (
        CompilationSettings,
        get_decompositions,
        post_lowering,
        pre_export_lowering,
    )
    from torch_tensorrt.dynamo._refit import _refit_single_trt_engine_with_gm
    from torch_tensorrt.dynamo.utils import prepare_inputs

    x = torch.randn(2, 3, 8, 8)
    try:
        plan = mlflow_trt.convert(Cnn(), [x], precision="fp32", immutable_weights=False)
    except mlflow_trt.errors.ConversionError as error:
        if "CUDA error 222" not in str(error):
            raise
        pytest.skip("this driver is too old for what this release compiles")
    assert plan.record.refittable
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.serialized)
    assert engine.refittable

    other = Cnn().eval()
    with torch.no_grad():
        other.classify.weight.mul_(-3)
    program = torch.export.export(other, (x,))
    lowered = prepare(program, computed_outputs(program, None), torch.float32, {"x": torch.float32}).program
    settings = CompilationSettings(immutable_weights=False, disable_tf32=True)
    lowered = pre_export_lowering(lowered, settings).run_decompositions(get_decompositions())
    graph = post_lowering(lowered.module(), settings)
    _refit_single_trt_engine_with_gm(graph, engine, list(prepare_inputs([x])), settings)
    with torch.no_grad():
        expected = other(x).numpy()
    actual = run(trt, engine, {"x": x.numpy()}, {"output0": expected})["output0"]
    assert np.linalg.norm(actual - expected) <= 1e-3 * np.linalg.norm(expected)


def test_named_capabilities_are_built_in_the_child():
    plan = mlflow_trt.convert(Cnn(), [Input((2, 3, 8, 8))], compute_capabilities=["8.9"])
    assert plan.record.capabilities == ("8.9",)


def test_model_on_the_gpu_is_left_there():
    model = Cnn().cuda()
    mlflow_trt.convert(model, [Input((2, 3, 8, 8))], precision="fp16")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_interrupt(monkeypatch):
    """Ctrl-C reaches the progress monitor, which stops TensorRT, and comes out as KeyboardInterrupt."""
    import contextlib

    def interrupt(event, phase, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(core.progress, "shown", lambda: contextlib.nullcontext(interrupt))
    with pytest.raises(KeyboardInterrupt):
        mlflow_trt.convert(Cnn(), [Input((2, 3, 8, 8))])
