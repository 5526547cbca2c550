# ruff: noqa: E402
"""A program is written as an ONNX graph that TensorRT takes, and means the same."""

from __future__ import annotations

import tempfile

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


from torch import nn

from mlflow_trt import Input, UnsupportedOperatorError
from mlflow_trt.conversion import onnx_agreement
from mlflow_trt.conversion.build_child import MODEL
from mlflow_trt.errors import ConversionError
from mlflow_trt.plan.files import read_header

from .models import Cnn, Function
from .networks import NETWORKS, Call
from .onnx_graphs import convert, golden, rows, written


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


def test_an_operator_that_onnx_has_not_is_named_with_its_place():
    operator = "torch.ops.aten._linalg_svd.default"
    with pytest.raises(UnsupportedOperatorError, match=rf"{operator} .*\(Function\)") as caught:
        convert(Function(lambda x: torch.linalg.svd(x)[1]), [Input((4, 4))], converter="onnx")
    assert caught.value.operators == (operator,)


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
