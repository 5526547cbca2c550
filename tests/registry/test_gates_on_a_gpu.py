"""The gates that measure, on a GPU: with engines that are right and wrong, quick and slow."""

from __future__ import annotations

import pytest

import mlflow_trt
from mlflow_trt.registry import gates

pytestmark = pytest.mark.gpu


def transformer(width=64):
    """One layer of attention under a mask, as in BERT."""
    import torch

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.qkv = torch.nn.Linear(width, 3 * width)
            self.out = torch.nn.Linear(width, width)

        def forward(self, x, mask):
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
            bias = (1.0 - mask[:, None, None, :]) * -1e4
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.out(y.transpose(1, 2).flatten(2))

    return Attention().eval()


def masked():
    """As a program that was exported on the GPU has it: the mask goes into an operator of its own for the GPU."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=4)
    example = (torch.randn(2, 16, 64, device="cuda"), torch.ones(2, 16, device="cuda"))
    program = torch.export.export(transformer().cuda(), example, dynamic_shapes=({0: batch}, {0: batch}))
    return program.run_decompositions()


def log_attention(name, **arguments):
    # Dynamic: TensorRT-RTX 1.4 fails to build this network for fixed shapes ("logical memory size").
    inputs = [mlflow_trt.Input(((1, 2, 4), 16, 64), name="x"), mlflow_trt.Input(((1, 2, 4), 16), name="mask")]
    info = mlflow_trt.log_model(
        masked(), "attention", inputs, precision="fp32", registered_model_name=name, **arguments
    )
    return info.registered_model_version


def test_wrong_numerics_are_refused_and_right_ones_pass():
    """``attn_bias_is_causal=True``, Torch-TensorRT's own default, is wrong for a bidirectional mask.

    The wrong engine is logged with a tolerance that lets anything pass; the gate judges by the precision's default.
    """
    anything = mlflow_trt.Tolerance(rel_l2=100.0, cosine=-1.0)
    right = log_attention("attention")
    wrong = log_attention("attention", attn_bias_is_causal=True, tolerance=anything)
    gate = gates.Parity()

    passed = mlflow_trt.promote("attention", right, gates=[gate])
    refused = mlflow_trt.promote("attention", wrong, gates=[gate])

    assert passed.promoted, passed.text()
    assert refused.outcome == "refused", refused.text()
    assert refused.verdicts[0].status == "failed"
    assert "relative L2 error" in refused.verdicts[0].reasons[0]
    print(passed.text(), refused.text(), sep="\n")


def mlp(width, depth):
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU()]
    for _ in range(depth):
        layers += [torch.nn.Linear(width, width), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 8)).eval()


@pytest.mark.alone
def test_a_slower_engine_is_refused_and_the_same_again_passes():
    def log(width, depth):
        info = mlflow_trt.log_model(
            mlp(width, depth),
            "mlp",
            [mlflow_trt.Input(((1, 8, 32), 64))],
            precision="fp16",
            registered_model_name="mlp",
        )
        return info.registered_model_version

    quick, slow, same = log(256, 2), log(4096, 12), log(256, 2)
    # The same network again: p50 within 20 % and p99, which the machine's other work decides, within a factor of 3.
    gate = gates.Latency(max_ratio=1.2, max_ratio_p99=3.0, seconds=30.0)
    mlflow_trt.promote("mlp", quick, gates=[])

    refused = mlflow_trt.promote("mlp", slow, gates=[gate])
    passed = mlflow_trt.promote("mlp", same, gates=[gate])

    assert refused.outcome == "refused", refused.text()
    assert refused.verdicts[0].status == "failed"
    assert passed.promoted, passed.text()
    print(refused.text(), passed.text(), sep="\n")


@pytest.mark.alone
def test_all_default_gates_measure_here():
    first, second = log_attention("everything"), log_attention("everything")
    mlflow_trt.promote("everything", first)

    report = mlflow_trt.promote("everything", second, gates=gates.default(max_ratio=3.0, seconds=20.0))

    assert {v.gate: v.status for v in report.verdicts} == {
        "integrity": "passed",
        "contract": "passed",
        "parity": "passed",
        "latency": "passed",
    }, report.text()
    assert report.promoted
    print(report.text())
