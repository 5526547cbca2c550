"""Maxima of a product that TensorRT-RTX drops, and the same as clips and choices: ``python -m benchmarks.maxima``.

Each row is a small module that is converted twice, as it is and as ``mlflow_trt.convert`` writes it
(``mlflow_trt/conversion/maxima.py``), and its largest relative error over batches of 1, 4 and 8, by PyTorch's own
answers. Needs a GPU.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mlflow_trt
from mlflow_trt import plan
from mlflow_trt.conversion import maxima
from mlflow_trt.engine import load as load_engine

Function = Callable[[torch.Tensor], torch.Tensor]
WRONG = 0.05
JOBS = 6
"""Conversions at once."""


class Gated(nn.Module):
    """A product of its input with a gate, and something of that.

    Args:
        tail: What becomes of the product.
        kind: ``squeezed``: a gate for each channel, by convolutions over its mean; ``linear``: the same by linear
            layers; ``spatial``: one for each position; ``glu``: of a convolution's other half; ``silu``: of itself.
        channels: Of the input, at 8 by 8 positions.
    """

    def __init__(self, tail: Function, kind: str = "squeezed", channels: int = 228) -> None:
        super().__init__()
        narrow = channels // 12
        self.down, self.up = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)
        self.norm = nn.BatchNorm2d(narrow)
        self.left, self.right = nn.Linear(channels, narrow), nn.Linear(narrow, channels)
        self.one, self.both = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 2 * channels, 1)
        self.tail, self.kind = tail, kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of images of shape (N, C, H, W)."""
        if self.kind == "squeezed":
            product = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        elif self.kind == "normed":
            product = x * torch.sigmoid(self.up(torch.relu(self.norm(self.down(x.mean((2, 3), keepdim=True))))))
        elif self.kind == "linear":
            product = x * torch.sigmoid(self.right(torch.relu(self.left(x.mean((2, 3))))))[..., None, None]
        elif self.kind == "spatial":
            product = x * torch.sigmoid(self.one(x))
        elif self.kind == "glu":
            product = F.glu(self.both(x), 1)
        else:
            product = F.silu(self.both(x))
        return self.tail(product)


def modules() -> Iterator[tuple[str, str | None, nn.Module]]:
    """Names, precisions and modules."""
    tails: dict[str, Function] = {
        "relu": torch.relu, "relu6": F.relu6, "clamp_min": lambda v: v.clamp_min(-0.5), "abs": torch.abs,
        "maximum": lambda v: torch.maximum(v, -0.5 * v), "upper bound": lambda v: v.clamp(max=0.5),
        "sum, relu": lambda v: torch.relu(v + 0.1), "leaky": lambda v: F.leaky_relu(v, 0.1),
        "hardswish": F.hardswish, "softsign": F.softsign, "scaled, relu": lambda v: torch.relu(0.7 * v),
        "negative, relu": lambda v: torch.relu(-v),
    }  # fmt: skip
    for name, tail in tails.items():
        yield f"squeezed, {name}", "fp32", Gated(tail)
    for kind in ("normed", "linear", "spatial", "glu", "silu"):
        yield f"{kind}, relu", "fp32", Gated(torch.relu, kind)
    yield "squeezed of 64 channels, relu", "fp32", Gated(torch.relu, channels=64)
    for kind, precision in itertools.product(("squeezed", "normed"), ("bf16", "fp16")):
        yield f"{kind}, relu", precision, Gated(torch.relu, kind)


def error(module: nn.Module, precision: str | None) -> float:
    """Converts a module, and compares the engine's answers with its own."""
    inputs = [mlflow_trt.Input(((1, 4, 8), module.down.in_channels, 8, 8))]  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = plan.write([mlflow_trt.convert(module.eval(), inputs, precision=precision)], folder, program=False)
        assert manifest.golden is not None
        worst = 0.0
        with load_engine(folder, manifest) as engine:
            for _, _, given, wanted in plan.read_golden(folder, manifest.golden).points():
                answers = engine.predict(given)
                for name, right in wanted.items():
                    worst = max(worst, float(np.linalg.norm(answers[name] - right) / np.linalg.norm(right)))
    return worst


def errors(index: int) -> tuple[float, float] | None:
    """Converts a module both ways; None where an operator of it has no converter."""
    torch.manual_seed(0)
    _, precision, module = list(modules())[index]
    try:
        with mock.patch.object(maxima, "of_product", return_value=False):
            before = error(module, precision)
        return before, error(module, precision)
    except mlflow_trt.UnsupportedOperatorError:
        return None


def main() -> int:
    """Prints the table; returns 1 if what is written otherwise is wrong."""
    import tensorrt_rtx as trt

    print(f"tensorrt_rtx {trt.__version__}, {torch.cuda.get_device_name()}, Torch-TensorRT's networks")
    print(f"{'':34} {'precision':10} {'as it is':>10} {'as written':>11}")
    names = [(name, precision or "own") for name, precision, _ in modules()]
    failed = False
    with concurrent.futures.ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, precision), both in zip(names, pool.map(errors, range(len(names)))):
            failed |= both is not None and both[1] > WRONG
            figures = "no converter" if both is None else f"{both[0]:10.1e} {both[1]:11.1e}"
            print(f"{name:34} {precision:10} {figures}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
