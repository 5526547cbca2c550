# ruff: noqa: E402
"""The second converter: what it takes, when it is asked, and that a graph which answers otherwise is refused."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import numpy as np
from torch import nn

import mlflow_trt
from mlflow_trt import Input, UnsupportedOperatorError
from mlflow_trt.conversion import converters, interface, onnx_agreement, onnx_parser, settings
from mlflow_trt.conversion import onnx as onnx_converter
from mlflow_trt.conversion.build_child import MODEL
from mlflow_trt.conversion.job import BindingSpec, Job
from mlflow_trt.errors import ConversionError, ConverterError, SettingError
from mlflow_trt.plan.files import GoldenTensors, read_header

from .models import Cnn, Function
from .networks import NETWORKS, Call
from .programs import prepared, run

TARGET = "8.6"
GATHER = Function(lambda x: torch.gather(x, 1, (x > 0).long()))
"""Torch-TensorRT's converter of it is not declared for dynamic sizes."""


def convert(model, inputs, **options):
    return mlflow_trt.convert(model, inputs, **{"compute_capabilities": TARGET, "timeout": 300, **options})


def written(model, inputs, dtype, folder):
    """A program as an ONNX graph in a folder, and its job."""
    inputs = [i if isinstance(i, Input) else Input(i) for i in inputs]
    _, made = prepared(model.eval(), inputs, dtype)
    specs = [
        BindingSpec(name, i.dtype, tuple((r.min, r.opt, r.max) for r in i.ranges))
        for name, i in zip(made.inputs, inputs)
    ]
    outputs = made.program.graph_signature.output_specs
    job = Job(tuple(specs), tuple(f"output{i}" for i in range(len(outputs))), {}, (TARGET,), converter="onnx")
    onnx_converter.write(made.program, job, folder)
    return made.program, job


def golden(model, job, *arrays):
    """What a model answers to these."""
    with torch.no_grad():
        answers = model(*map(torch.from_numpy, arrays))
    answers = answers if isinstance(answers, tuple) else (answers,)
    inputs = {f"0.opt/{spec.name}": array for spec, array in zip(job.inputs, arrays)}
    return GoldenTensors(inputs, {f"0.opt/{n}": a.float().numpy() for n, a in zip(job.outputs, answers)})


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("precision", [None, pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, precision):
    network = NETWORKS[name]
    if network.refused:
        with pytest.raises(UnsupportedOperatorError, match=network.refused) as caught:
            convert(network.module, list(network.inputs), precision=precision, converter="onnx")
        assert all(operator.startswith("onnx.") for operator in caught.value.operators)
        return
    plan = convert(network.module, list(network.inputs), precision=precision, converter="onnx")
    assert (plan.record.converter, plan.record.converter_reason) == ("onnx", None)
    assert read_header(plan.serialized).capabilities == plan.record.capabilities


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_by_whichever_way(name):
    network = NETWORKS[name]
    if network.refused:
        with pytest.raises(UnsupportedOperatorError, match=rf"(?s)Torch-TensorRT: .*ONNX: .*{network.refused}"):
            convert(network.module, list(network.inputs))
        return
    plan = convert(network.module, list(network.inputs))
    assert plan.record.converter == ("torch_tensorrt" if network.first else "onnx")
    assert (plan.record.converter_reason is None) == network.first


def test_where_torch_tensorrt_cannot_onnx_is_tried_and_this_is_said(caplog):
    with caplog.at_level(logging.INFO, "mlflow_trt"):
        plan = convert(GATHER, [Input(((1, 2, 4), 3))], precision="fp16", optimization_level=2)
    assert plan.record.converter == "onnx"
    assert plan.record.converter_reason == "Torch-TensorRT has no converter for torch.ops.aten.gather.default"
    assert "no converter for torch.ops.aten.gather.default: ONNX is tried." in caplog.text
    assert plan.record.settings == {"optimization_level": 2}  # Torch-TensorRT's own mean nothing here
    assert [t.name for t in plan.manifest.interface.outputs] == ["output0"]


def test_both_reasons_are_told_each_with_its_operators():
    model = Function(lambda x: torch.fft.rfft(x).abs())
    with pytest.raises(UnsupportedOperatorError) as caught:
        convert(model, [Input(((1, 2, 4), 16))])
    assert "onnx.DFT" in caught.value.operators
    assert any(operator.startswith("torch.ops.aten") for operator in caught.value.operators)
    assert "\nTorch-TensorRT: The model has" in caught.value.found
    assert "\nONNX: The model's ONNX graph has 1 operator" in caught.value.found


def test_an_operator_that_onnx_has_not_is_named_with_its_place():
    operator = "torch.ops.aten._linalg_svd.default"
    with pytest.raises(UnsupportedOperatorError, match=rf"{operator} .*\(Function\)") as caught:
        convert(Function(lambda x: torch.linalg.svd(x)[1]), [Input((4, 4))], converter="onnx")
    assert caught.value.operators == (operator,)


@pytest.mark.parametrize(
    ("options", "words"), [({"timeout": 0.01}, "not finished"), ({"precision": "fp12"}, "unknown")]
)
def test_what_is_no_fault_of_a_converter_is_not_tried_again(options, words, caplog):
    with caplog.at_level(logging.INFO, "mlflow_trt"), pytest.raises(mlflow_trt.TrtError, match=words):
        convert(GATHER, [Input(((1, 2, 4), 3))], **options)
    assert "ONNX" not in caplog.text


def test_a_converter_that_is_unknown_names_the_nearest():
    with pytest.raises(SettingError, match="converter='torch_tensorrt'"):
        convert(nn.Linear(3, 3), [Input((1, 3))], converter="torch-tensort")


def test_settings_of_torch_tensorrts_own():
    with pytest.raises(SettingError, match="decompose_attention"):
        convert(nn.Linear(3, 3), [Input((1, 3))], converter="onnx", decompose_attention=True)
    with pytest.raises(SettingError, match="no setting attn_bias_is_causal"):
        convert(nn.Linear(3, 3), [Input((1, 3))], converter="onnx", attn_bias_is_causal=True)
    with pytest.raises(UnsupportedOperatorError, match=r"gather(?s:.*)was not tried: .*min_block_size"):
        convert(GATHER, [Input(((1, 2, 4), 3))], min_block_size=2)


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(onnx_converter, "PACKAGES", ("onnx", "onnx_of_another_world"))
    with pytest.raises(SettingError, match="pip install onnx_of_another_world"):
        convert(nn.Linear(3, 3), [Input((1, 3))], converter="onnx")
    with pytest.raises(UnsupportedOperatorError, match=r"gather(?s:.*)was not tried: .*onnx_of_another_world"):
        convert(GATHER, [Input(((1, 2, 4), 3))])


def test_names_that_the_graph_uses_inside():
    model = Function(lambda x: {"mul": x * 2 + 1, "add": x * 2, "x.inner": x - 1})
    plan = convert(model, [Input(((1, 2, 4), 3))], converter="onnx")
    assert [t.binding for t in plan.manifest.interface.outputs] == ["mul", "add", "x.inner"]


def test_equations_in_capital_letters():
    """MaxViT's; TensorRT's parser says "Invalid character(s) in Einsum equation"."""
    model = Function(lambda x: torch.einsum("B H I D, B H J D -> B H I J", x, x + 1))
    plan = convert(model, [Input(((1, 2, 4), 2, 3, 5))], converter="onnx")
    assert plan.record.converter == "onnx"


@pytest.mark.parametrize("equation", ["B C, C A -> A B", "bc,ca", "...i,ij->...j"])
def test_equations_mean_the_same_however_they_are_spelled(equation, tmp_path):
    model = Call(lambda a, b: torch.einsum(equation, a, b)).eval()
    program, job = written(model, [(3, 4), (4, 5)], None, tmp_path)
    shapes = [spec.profiles[0][0] for spec in job.inputs]
    asked = golden(model, job, *(rows(*shape) for shape in shapes))
    onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)


def test_an_input_that_nothing_reads_and_one_without_dimensions():
    model = Call(lambda x, factor, unread: (x * factor, torch.arange(3.0), x.shape[0] * 2))
    plan = convert(model, [Input(((1, 2, 4), 3)), Input(()), Input(((1, 2, 4), 5))], converter="onnx")
    assert [t.shape for t in plan.manifest.interface.inputs] == [("batch", 3), (), ("batch", 5)]
    outputs = [(t.binding_dtype, t.shape) for t in plan.manifest.interface.outputs]
    assert outputs == [("float32", ("batch", 3)), ("float32", (3,)), ("int64", ())]


def test_weights_lie_beside_the_graph(tmp_path):
    """A graph of more than 2 GB can't hold its own."""
    written(nn.Linear(300, 300), [((1, 2, 4), 300)], None, tmp_path)
    weights = [path for path in tmp_path.iterdir() if path.name != MODEL]
    assert sum(path.stat().st_size for path in weights) >= 4 * 300 * 300
    assert (tmp_path / MODEL).stat().st_size < 20_000


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    convert(Cnn(), [Input((1, 3, 8, 8))], converter="onnx")
    with pytest.raises(ConversionError):
        convert(NETWORKS["antialias"].module, list(NETWORKS["antialias"].inputs), converter="onnx")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("mlflow-trt-")] == []


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_graph_that_answers_otherwise_is_refused(tmp_path, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    program, job = written(model, [((1, 2, 4), 6)], dtype, tmp_path)
    asked = golden(model, job, rows(3, 6))
    onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)

    graph = onnx.load(tmp_path / MODEL, load_external_data=False)
    (relu,) = [node for node in graph.graph.node if node.op_type == "Relu"]
    relu.op_type = "Abs"
    onnx.save(graph, tmp_path / MODEL)
    with pytest.raises(ConverterError, match=r"answers otherwise than the model at opt of profile 0: output0: rel L2"):
        onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)


def test_a_graph_that_fails_where_the_model_answers_is_refused(tmp_path):
    program, job = written(nn.Linear(6, 3), [((1, 2, 4), 6)], None, tmp_path)
    asked = golden(nn.Linear(7, 3), job, rows(3, 7))
    with pytest.raises(ConverterError, match="fails at opt of profile 0"):
        onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)
    (tmp_path / MODEL).write_bytes((tmp_path / MODEL).read_bytes().replace(b"Gemm", b"Mmeg"))
    with pytest.raises(ConverterError, match="is not valid"):
        onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)


class Amplifier(nn.Module):
    """Rounding is multiplied from step to step, as in untrained networks."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        for _ in range(6):
            y = torch.sin(7 * y)
        return y


def test_rounding_that_adds_up_is_no_other_answer(tmp_path):
    torch.manual_seed(0)
    model = Amplifier().eval()
    program, job = written(model, [((1, 4, 8), 8)], torch.float16, tmp_path)
    x = rows(4, 8)
    asked = golden(model, job, x)
    half = run(program, torch.from_numpy(x))[0].numpy()
    assert np.linalg.norm(half - asked.outputs["0.opt/output0"]) > 0.05 * np.linalg.norm(half)
    onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)


class Branch(nn.Module):
    """A graph within the graph, with weights of the one around it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: self.linear(v), lambda v: v - self.linear(v), (x,))


def test_graphs_within_the_graph_are_compared_too(tmp_path):
    torch.manual_seed(0)
    model = Branch().eval()
    program, job = written(model, [(2, 4)], torch.float16, tmp_path)
    asked = golden(model, job, rows(2, 4))
    onnx_agreement.check(tmp_path / MODEL, program, job, asked, job.outputs)


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
    import subprocess
    import sys

    code = """
import sys
from mlflow_trt.conversion import build_child
from mlflow_trt.conversion.job import Job
from mlflow_trt.conversion.onnx_parser import build
print([name for name in ("torch", "torch_tensorrt", "mlflow", "onnx") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_note_reaches_who_listens():
    events = []
    model = converters.Source(prepared(GATHER, [Input(((1, 2, 4), 3))], None)[1], GoldenTensors({}, {}), ("output0",))
    spec = BindingSpec("x", interface.plain(torch.float32), (((1, 3), (2, 3), (4, 3)),))
    job = Job((spec,), ("output0",), {"offload_module_to_cpu": True}, (TARGET,))
    conversion = converters.build(model, job, "auto", 300, lambda *event: events.append(event))
    assert conversion.job.converter == "onnx"
    assert [text for kind, text, _ in events if kind == "note"] == [f"{conversion.reason}: ONNX is tried."]


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
