"""Networks at the sizes that they are used with, weights random and scaled as those of :mod:`benchmarks.architectures`.

Images of 224×224, for detection of 640×640, texts of 128 tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from .architectures import Architecture, Image, Made, Text, Tokens, calibrate

TOKENS = 128


def make(name: str) -> Architecture:
    """Makes one of :data:`NETWORKS`; the same numbers every time.

    Raises:
        ImportError: Its library is not installed.
    """
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    made = Architecture(module.eval(), inputs)
    calibrate(made, 1.0, 0.0)
    return made


class _Conv(nn.Sequential):
    """A convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class _Csp(nn.Module):
    """A cross stage partial block: one half goes through bottlenecks, and both halves are joined."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.second, self.join = _Conv(inputs, half), _Conv(inputs, half), _Conv(2 * half, outputs)
        self.steps = nn.ModuleList(nn.Sequential(_Conv(half, half), _Conv(half, half, 3)) for _ in range(depth))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.first(x)
        for step in self.steps:
            kept = kept + step(kept) if self.shortcut else step(kept)
        return self.join(torch.cat((kept, self.second(x)), 1))


class _Pools(nn.Module):
    """Three maxima over larger and larger neighbourhoods, beside what they are of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = _Conv(width, width // 2), _Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.before(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.after(torch.cat(found, 1))


class Detector(nn.Module):
    """A detector of the YOLO family: CSP backbone, features merged upwards and downwards, boxes of three scales.

    Args:
        width: Channels of the first stage.
        classes: How many classes it tells apart.
    """

    def __init__(self, width: int = 32, classes: int = 80) -> None:
        super().__init__()
        small, middle, large = 4 * width, 8 * width, 16 * width
        self.stem = nn.Sequential(
            _Conv(3, width, 3, 2), _Conv(width, 2 * width, 3, 2), _Csp(2 * width, 2 * width, 1),
        )  # fmt: skip
        self.stage3 = nn.Sequential(_Conv(2 * width, small, 3, 2), _Csp(small, small, 2))
        self.stage4 = nn.Sequential(_Conv(small, middle, 3, 2), _Csp(middle, middle, 3))
        self.stage5 = nn.Sequential(_Conv(middle, large, 3, 2), _Csp(large, large, 1), _Pools(large))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow5, self.narrow4 = _Conv(large, middle), _Conv(middle, small)
        self.merge4, self.merge3 = (
            _Csp(2 * middle, middle, 1, shortcut=False),
            _Csp(2 * small, small, 1, shortcut=False),
        )
        self.down3, self.down4 = _Conv(small, small, 3, 2), _Conv(middle, middle, 3, 2)
        self.out4, self.out5 = _Csp(2 * small, middle, 1, shortcut=False), _Csp(2 * middle, large, 1, shortcut=False)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 4 + classes, 1) for channels in (small, middle, large))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float images of (batch, 3, height, width), sizes multiples of 32, to (batch, boxes, 4 + classes)."""
        c3 = self.stage3(self.stem(images))
        c4 = self.stage4(c3)
        p5 = self.narrow5(self.stage5(c4))
        p4 = self.narrow4(self.merge4(torch.cat((self.up(p5), c4), 1)))
        n3 = self.merge3(torch.cat((self.up(p4), c3), 1))
        n4 = self.out4(torch.cat((self.down3(n3), p4), 1))
        n5 = self.out5(torch.cat((self.down4(n4), p5), 1))
        boxes = [self._boxes(head(x), stride) for head, x, stride in zip(self.heads, (n3, n4, n5), (8, 16, 32))]
        return torch.cat(boxes, 1)

    @staticmethod
    def _boxes(found: torch.Tensor, stride: int) -> torch.Tensor:
        height, width = found.shape[2:]
        rows, columns = torch.meshgrid(
            torch.arange(height, device=found.device), torch.arange(width, device=found.device), indexing="ij"
        )
        centers = (torch.stack((columns, rows)).flatten(1).t() + 0.5) * stride
        flat = found.flatten(2).transpose(1, 2)
        where, size = centers + flat[..., :2] * stride, flat[..., 2:4].clamp(max=4.0).exp() * stride
        return torch.cat((where, size, flat[..., 4:].sigmoid()), 2)


def _torchvision(name: str) -> Made:
    import torchvision

    return Image(getattr(torchvision.models, name)(weights=None), lambda answer: answer, ()), [
        ("images", (3, 224, 224), "float32")
    ]


def _detector() -> Made:
    return Detector(), [("images", (3, 640, 640), "float32")]


def _bert() -> Made:
    import transformers

    model = transformers.BertModel(transformers.BertConfig())
    inputs = [("input_ids", (TOKENS,), "int64"), ("attention_mask", (TOKENS,), "int64")]
    return Text(model, lambda answer: answer.last_hidden_state, ()), inputs


def _gpt2() -> Made:
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    return Tokens(model, lambda answer: answer.logits, ()), [("input_ids", (TOKENS,), "int64")]


NETWORKS = {
    "resnet50": lambda: _torchvision("resnet50"),
    "bert-base": _bert,
    "vit_b_16": lambda: _torchvision("vit_b_16"),
    "convnext_tiny": lambda: _torchvision("convnext_tiny"),
    "detector": _detector,
    "gpt2": _gpt2,
}
"""By name, what makes each; none of them keeps a cache of what it has seen."""
