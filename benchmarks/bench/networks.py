"""The networks of passport papers: ResNet-18 and AlexNet in the form for pictures of 32 pixels.

Each with BatchNorm or GroupNorm (groups of 16 channels), and with its channels scaled, so that what
takes a GPU at full width can be tried on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.pointnet_model import PointNet
from passportize.errors import InvalidArgument

__all__ = ["NETWORKS", "NORMS", "AlexNet", "ResNet18", "build"]

NETWORKS = ("resnet18", "alexnet", "pointnet")
NORMS = ("bn", "gn")
LEAST = 8
"""Channels that are left at least, whatever the width."""


def norm_of(kind: str, channels: int) -> nn.Module:
    """A norm with affine parameters; GroupNorm in groups of 16 channels as in the papers."""
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, channels // 16), channels)


def scaled(channels: int, width: float) -> int:
    """So many channels, times the width."""
    return max(LEAST, round(channels * width))


class Block(nn.Module):
    """Two convolutions of 3 x 3 and what goes past them (K. He et al., CVPR 2016)."""

    def __init__(self, before: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1 = norm_of(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm_of(norm, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), norm_of(norm, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, before, H, W]`` to ``[B, channels, H / stride, W / stride]``."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a stem of 3 x 3 and without pooling behind it: 20 norms."""

    def __init__(self, inputs: int, classes: int, width: float = 1.0, norm: str = "bn") -> None:
        super().__init__()
        channels = [scaled(count, width) for count in (64, 128, 256, 512)]
        self.stem = nn.Conv2d(inputs, channels[0], 3, 1, 1, bias=False)
        self.norm = norm_of(norm, channels[0])
        blocks, before = [], channels[0]
        for stage, count in enumerate(channels):
            for position in range(2):
                stride = 2 if stage and not position else 1
                blocks.append(Block(before, count, stride, norm))
                before = count
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures ``[B, inputs, H, W]`` to class scores ``[B, classes]``."""
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        scores: Tensor = self.classifier(x.mean((2, 3)))
        return scores


class AlexNet(nn.Module):
    """AlexNet with five convolutions for pictures of 32 pixels, and one linear layer: 5 norms."""

    def __init__(
        self, inputs: int, classes: int, width: float = 1.0, norm: str = "bn", size: int = 32
    ) -> None:
        super().__init__()
        counts = [scaled(count, width) for count in (64, 192, 384, 256, 256)]
        layers: list[nn.Module] = []
        before = inputs
        for index, (count, kernel) in enumerate(zip(counts, (5, 5, 3, 3, 3), strict=True)):
            layers += [
                nn.Conv2d(before, count, kernel, 1, kernel // 2, bias=False),
                norm_of(norm, count),
                nn.ReLU(),
            ]
            if index in (0, 1, 4):
                layers.append(nn.MaxPool2d(2))
            before = count
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before * (size // 8) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures ``[B, inputs, size, size]`` to class scores ``[B, classes]``."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def build(
    network: str, norm: str, width: float, example: Tensor, classes: int, seed: int
) -> nn.Module:
    """An untrained network; the global random state stays.

    Args:
        network: One of :data:`NETWORKS`.
        norm: One of :data:`NORMS`; a PointNet has BatchNorm.
        width: What channels are multiplied with.
        example: Inputs ``[N, C, H, W]`` or clouds ``[N, points, 3]``.
        classes: Number of classes.
        seed: Of the initial weights.

    Raises:
        InvalidArgument: There is no such network.
    """
    if network not in NETWORKS or norm not in NORMS:
        raise InvalidArgument(
            f"network={network!r}, norm={norm!r}: use one of {', '.join(NETWORKS)} with one of "
            f"{', '.join(NORMS)}"
        )
    if (network == "pointnet") != (example.dim() == 3):
        raise InvalidArgument(f"{network} does not take inputs of shape {tuple(example.shape[1:])}")
    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet18": partial(ResNet18, example.shape[1], classes, width, norm),
        "alexnet": partial(AlexNet, example.shape[1], classes, width, norm, example.shape[-1]),
        "pointnet": partial(PointNet, classes, scaled(1024, width)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[network]()
