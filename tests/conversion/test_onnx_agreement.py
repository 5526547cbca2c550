# ruff: noqa: E402
"""A graph that answers otherwise than its model is refused; rounding is no other answer."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


import numpy as np
from torch import nn

from mlflow_trt.conversion import onnx_agreement
from mlflow_trt.conversion.build_child import MODEL
from mlflow_trt.errors import ConverterError

from .onnx_graphs import golden, rows, written
from .programs import run


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
