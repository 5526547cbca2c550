"""Plain PyTorch networks that several examples and benchmarks use."""

from __future__ import annotations

import torch
from torch import nn


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; the stride is on the 3×3, as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.path = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50: 25.6 million parameters, 4.1 billion multiply-adds for an image of 224×224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        stages: list[nn.Module] = []
        inputs = 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(blocks):
                stages.append(Bottleneck(inputs, width, stride if block == 0 else 1))
                inputs = 4 * width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images)).mean((2, 3))
        return self.classifier(features)


def resnet50(seed: int = 0) -> ResNet50:
    """Returns a ResNet-50 with random weights that are the same for the same seed: good for speed, not for pictures.

    The last normalisation of every block is scaled down, as in training recipes: with plain random weights activations
    double at every block and overflow in FP16.
    """
    torch.manual_seed(seed)
    model = ResNet50()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.path[-1].weight, 0.2)
    return model.eval()


def resnet50_other() -> ResNet50:
    """Returns the same network with other weights."""
    return resnet50(seed=1)


class Normalised(nn.Module):
    """A network for images as they are in files, 0 to 255, which it normalises itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images.float() / 255 - self.mean) / self.std)


def resnet50_uint8() -> Normalised:
    """Returns a ResNet-50 that takes bytes: a quarter of what float32 images take to send."""
    return Normalised(resnet50()).eval()


class Mlp(nn.Module):
    """A tiny network: what it takes beside the GPU's own work is what is seen."""

    def __init__(self, features: int = 64, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def mlp(seed: int = 0) -> Mlp:
    """Returns the tiny network with weights that are the same for the same seed."""
    torch.manual_seed(seed)
    return Mlp().eval()
