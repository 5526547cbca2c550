# ruff: noqa: E402
"""Which converter is asked, when the other one is, and what is told of it."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


from torch import nn

import mlflow_trt
from mlflow_trt import Input, UnsupportedOperatorError
from mlflow_trt.conversion import converters, interface
from mlflow_trt.conversion import onnx as onnx_converter
from mlflow_trt.conversion.job import BindingSpec, Job
from mlflow_trt.errors import SettingError
from mlflow_trt.plan.files import GoldenTensors

from .models import Function
from .networks import NETWORKS
from .onnx_graphs import TARGET, convert
from .programs import prepared

GATHER = Function(lambda x: torch.gather(x, 1, (x > 0).long()))
"""Torch-TensorRT's converter of it is not declared for dynamic sizes."""


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


@pytest.mark.parametrize(
    ("options", "words"), [({"timeout": 0.01}, "not finished"), ({"precision": "fp12"}, "unknown")]
)
def test_what_is_no_fault_of_a_converter_is_not_tried_again(options, words, caplog):
    with caplog.at_level(logging.INFO, "mlflow_trt"), pytest.raises(mlflow_trt.TrtError, match=words):
        convert(GATHER, [Input(((1, 2, 4), 3))], **options)
    assert "ONNX" not in caplog.text


def test_a_note_reaches_who_listens():
    events = []
    model = converters.Source(prepared(GATHER, [Input(((1, 2, 4), 3))], None)[1], GoldenTensors({}, {}), ("output0",))
    spec = BindingSpec("x", interface.plain(torch.float32), (((1, 3), (2, 3), (4, 3)),))
    job = Job((spec,), ("output0",), {"offload_module_to_cpu": True}, (TARGET,))
    conversion = converters.build(model, job, "auto", 300, lambda *event: events.append(event))
    assert conversion.job.converter == "onnx"
    assert [text for kind, text, _ in events if kind == "note"] == [f"{conversion.reason}: ONNX is tried."]


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
