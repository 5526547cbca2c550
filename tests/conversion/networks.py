"""Small networks, each of a kind that a conversion once got wrong or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mlflow_trt import Input

BATCH = (1, 4, 8)


class Call(nn.Module):
    """A function of any number of tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Normalized(nn.Module):
    """An image as it comes from a decoder."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]).view(1, 3, 1, 1))

    def forward(self, image):
        return self.conv((image.permute(0, 3, 1, 2).float() - self.mean) / 58.0)


class Autocast(nn.Module):
    """bfloat16 inside a float32 model."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x).float()


class Pooled(nn.Module):
    """A global average pool over what a layer norm left channels-last: ConvNeXt, Swin, PatchTST."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def cached(cache, new):
    out = cache.clone()
    out[:, 2:3] = new
    return out, out.sum(1)


@dataclass(frozen=True)
class Network:
    """A network, its inputs, and what Torch-TensorRT and ONNX should make of it."""

    module: nn.Module
    inputs: tuple[Any, ...]
    first: bool = True
    """Whether Torch-TensorRT 2.14 converts it."""
    refused: str | None = None
    """Words of ONNX's refusal; None: it converts."""


def _network(module: Any, *inputs: Any, **expected: Any) -> Network:
    module = module if isinstance(module, nn.Module) else Call(module)
    return Network(module.eval(), tuple(Input(*i) if isinstance(i[0], tuple) else Input(i) for i in inputs), **expected)


torch.manual_seed(0)
ROWS = (BATCH, 6)
IMAGE = (BATCH, 3, 32, 32)
BYTES = ((BATCH, 8, 8, 3), "uint8")
ANY = (8, 16, 32)
channels_last = torch.channels_last


def rows(module, **expected):
    return _network(module, (ROWS,), **expected)


def image(module, **expected):
    return _network(module, (IMAGE,), **expected)


NETWORKS = {
    "uint8 image": _network(Normalized(), ((BATCH, 16, 16, 3), "uint8")),
    "uint8 / 255": _network(lambda x: x / 255, BYTES),
    "uint8 flip": _network(lambda x: x.flip(-1).permute(0, 3, 1, 2).float(), BYTES),
    "uint8 resize": _network(lambda x: F.interpolate(x.permute(0, 3, 1, 2).float(), (12, 12), mode="bilinear"), BYTES),
    "uint8 output": rows(lambda x: (x.sigmoid() * 255).to(torch.uint8)),
    "float64 model": rows(nn.Linear(6, 3).double()),
    "batch norm, no weights": image(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))),
    "pool, channels last": image(Pooled()),
    "memory format": image(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=channels_last),
    ),
    "max pool, ceil": image(nn.MaxPool2d(3, 2, ceil_mode=True), first=False),
    "average pool, ceil": image(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), first=False),
    "adaptive max pool": _network(nn.AdaptiveMaxPool2d(1), ((BATCH, 3, ANY, ANY),), first=False),
    "amax, dynamic": _network(lambda x: x.amax(1), ((BATCH, (4, 8, 16), 3),)),
    "max with indices": rows(lambda x: tuple(x.max(1)), first=False),
    "gather, dynamic": _network(lambda x, i: x.gather(1, i), (ROWS,), ((BATCH, 2), "int64"), first=False),
    "split, dynamic": _network(lambda x: x.split([2, x.shape[1] - 2], 1)[1], ((BATCH, (4, 8, 16)),), first=False),
    "topk as a named tuple": rows(lambda x: x.topk(2, dim=1)),
    "topk of many": _network(lambda x: x.topk(300, dim=1).values, ((BATCH, 8400),)),
    "sort": _network(lambda x: x.sort(1).values, ((BATCH, (4, 8, 16)),), first=False),
    "resize by shape": _network(
        lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear"),
        ((BATCH, 3, ANY, ANY),),
        first=False,
    ),
    "antialias": image(
        lambda x: F.interpolate(x, (10, 10), mode="bilinear", antialias=True),
        first=False,
        refused="Resize at .*ntialias",
    ),
    "half of the rows": _network(lambda x: x[-(x.shape[0] // 2) :] * 2, (((2, 8, 64), 3),)),
    "state in and out": _network(cached, ((BATCH, 6, 4),), ((BATCH, 1, 4),)),
    "autocast inside": _network(Autocast(), ((BATCH, 8),)),
    "fft": _network(lambda x: torch.fft.rfft(x).abs(), ((BATCH, 64),), first=False, refused="DFT at "),
}
"""By what they show."""
