# ruff: noqa: E402
"""TensorRT's own parser of ONNX: its engine, its words, its settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


from torch import nn

from mlflow_trt.conversion import onnx_parser, settings
from mlflow_trt.conversion.build_child import MODEL
from mlflow_trt.errors import ConversionError
from mlflow_trt.plan.files import read_header

from .models import Cnn
from .onnx_graphs import TARGET, written


def test_in_this_process_as_on_a_machine_with_a_gpu(tmp_path):
    _, job = written(Cnn(), [((1, 2, 4), 3, 8, 8)], torch.float16, tmp_path)
    events = []
    built = onnx_parser.build(tmp_path / MODEL, job, lambda *event: events.append(event))
    assert (built.network.inputs, built.network.outputs) == (
        [("x", "float32")],
        [("output0", "float32", [-1, 20])],
    )
    assert {kind for kind, _, _ in events} == {"start", "step", "finish"}
    assert read_header(built.serialized).capabilities == (TARGET,)

    def interrupt(*event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx_parser.build(tmp_path / MODEL, job, interrupt)


def test_what_the_parser_says_is_told(tmp_path):
    _, job = written(nn.Linear(6, 3), [(2, 6)], None, tmp_path)
    (tmp_path / MODEL).write_bytes(b"no graph")
    with pytest.raises(ConversionError, match="TensorRT's parser refused the model's ONNX graph"):
        onnx_parser.build(tmp_path / MODEL, job)


def test_the_building_child_needs_no_torch():
    code = """
import sys
from mlflow_trt.conversion import build_child
from mlflow_trt.conversion.job import Job
from mlflow_trt.conversion.onnx_parser import build
print([name for name in ("torch", "torch_tensorrt", "mlflow", "onnx") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SETTINGS = {
    "disable_tf32": True,
    "enable_weight_streaming": True,
    "hardware_compatible": True,
    "l2_limit_for_tiling": 1 << 20,
    "max_aux_streams": 1,
    "num_avg_timing_iters": 2,
    "optimization_level": 1,
    "sparse_weights": True,
    "tiling_optimization_level": "fast",
    "version_compatible": True,
    "workspace_size": 1 << 24,
}
NEED_A_GPU = {"immutable_weights", "refit_identical_engine_weights", "strip_engine_weights"}


def test_settings_of_tensorrts_builder_reach_it(tmp_path):
    """TensorRT-RTX makes nothing of most, and forgets hardware compatibility at once; both runtimes have them alike."""
    import tensorrt_rtx as trt

    assert set(SETTINGS) | NEED_A_GPU == set(settings.OF_THE_BUILDER) <= set(settings.known())
    _, job = written(nn.Linear(6, 3), [(2, 6)], None, tmp_path)
    config = trt.Builder(trt.Logger()).create_builder_config()
    before = {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}
    onnx_parser._set(trt, config, SETTINGS)
    flags = trt.BuilderFlag
    assert not config.get_flag(flags.TF32)
    for flag in (flags.WEIGHT_STREAMING, flags.SPARSE_WEIGHTS, flags.VERSION_COMPATIBLE, flags.EXCLUDE_LEAN_RUNTIME):
        assert config.get_flag(flag)
    for name in ("builder_optimization_level", "max_aux_streams", "avg_timing_iterations", "l2_limit_for_tiling"):
        assert getattr(config, name) != before[name]
    assert config.tiling_optimization_level == trt.TilingOptimizationLevel.FAST
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 24
    refittable = {"immutable_weights": False, "refit_identical_engine_weights": True, "strip_engine_weights": True}
    onnx_parser._set(trt, config, refittable)
    assert config.get_flag(flags.REFIT_IDENTICAL)
    assert config.get_flag(flags.STRIP_PLAN)
    assert not config.get_flag(flags.REFIT)
    kept = {name: SETTINGS[name] for name in ("optimization_level", "workspace_size", "disable_tf32")}
    assert not onnx_parser.build(tmp_path / MODEL, replace(job, settings=kept)).network.tf32
