"""Small models, each with something that a conversion can get wrong."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional

Pair = namedtuple("Pair", "left right")


class Cnn(nn.Module):
    """Convolution, batch norm, linear; 6.3 thousand weights in conv and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.classify = nn.Linear(8 * 36, 20)

    def forward(self, x):
        return self.classify(self.features(x).flatten(1))


class Nested(nn.Module):
    """Several inputs, nested and by keyword; outputs repeated, handed through, constant, None, of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 5)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x, pair, flag=True, ids=None, mask=None, factor=3):
        y = self.linear(x) * factor
        one_hot = functional.one_hot(ids, 8).float()
        return {
            "y": y,
            "again": (y, x, None, 3, x.shape[0], Pair(pair["m"] + pair["n"], "text")),
            "more": [one_hot, mask.logical_not() & mask, ids + 1, x.clone(), self.table, y.sum(), y > 0],
        }


class Attention(nn.Module):
    """A small transformer layer with what breaks in half precision: masks of float32's minimum, a norm computed in
    float32, rotary frequencies, an average over a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.register_buffer("frequencies", torch.rand(2))

    def forward(self, ids, mask):
        x = self.embed(ids)
        batch, length = ids.shape
        positions = torch.arange(length, device=ids.device).float() + 3000
        angles = (self.frequencies[:, None].float() @ positions[None].float()).cos().mean(0)[None, :, None]
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, 16)) * angles
        x = x * torch.rsqrt((x * 300).float().pow(2).mean(-1, keepdim=True) + 1e-6)
        weights = mask[..., None].float()
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class Islands(nn.Module):
    """All of its arithmetic is explicitly in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        return x.float() @ self.weight.float()


class Counter(nn.Module):
    """Changes its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Two(nn.Module):
    """A function of two tensors."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, a, b):
        return self.function(a, b)


class Gated(nn.Module):
    """Squeeze and excitation, or a gate at each position, and a maximum of it."""

    def __init__(self, tail, squeeze=True, channels=4):
        super().__init__()
        few = max(2, channels // 12)
        self.down, self.norm, self.up = nn.Conv2d(channels, few, 1), nn.BatchNorm2d(few), nn.Conv2d(few, channels, 1)
        self.tail, self.squeeze = tail, squeeze

    def forward(self, x):
        narrow = x.mean((2, 3), keepdim=True) if self.squeeze else x
        return self.tail(x * torch.sigmoid(self.up(torch.relu(self.norm(self.down(narrow))))))
