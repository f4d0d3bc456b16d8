"""Small models whose groups of channels can change places as wholes, and what keeps them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import SelectiveKernel, SplitAttn
from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class Grouped(nn.Module):
    """A block with a skip around a convolution of four groups, and a gate behind it (ResNeXt)."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 64) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 64), norm(64)
        self.inward, self.inward_norm = _convolution(64, width, 1), norm(width)
        self.middle, self.middle_norm = _convolution(width, 96, 3, groups=4), norm(96)
        self.gate, self.opened = nn.Conv2d(96, 8, 1), nn.Conv2d(8, 96, 1)
        self.outward, self.outward_norm = _convolution(96, 64, 1), norm(64)
        self.last, self.head = _convolution(64, 40, 3), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        inner = torch.relu(self.inward_norm(self.inward(x)))
        inner = torch.relu(self.middle_norm(self.middle(inner)))
        gate = torch.relu(self.gate(inner.mean((2, 3), keepdim=True)))
        inner = inner * torch.sigmoid(self.opened(gate))
        x = torch.relu(x + self.outward_norm(self.outward(inner)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def group_normed() -> nn.Module:
    """The same behind GroupNorms of four groups: along the stream, and behind the convolution."""
    return Grouped(lambda width: nn.GroupNorm(4, width))


def nested() -> nn.Module:
    """The same behind GroupNorms of eight groups, two to each group of the convolution."""
    return Grouped(lambda width: nn.GroupNorm(8, width))


class Placed(nn.Module):
    """Places behind a grouped convolution, with a parameter for each place and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = _convolution(3, 64), _convolution(64, 96, 3, groups=4)
        self.places = nn.Parameter(torch.randn(1, 256, 96) / 4)
        self.last, self.head = nn.Linear(96, 40), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(torch.relu(self.stem(x))).flatten(2).transpose(1, 2) + self.places
        return self.head(torch.relu(self.last(torch.relu(x))).mean(1))


class Shuffled(nn.Module):
    """Two convolutions of four groups with the channels dealt out in between (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 64), nn.BatchNorm2d(64)
        self.first, self.first_norm = _convolution(64, 96, 3, groups=4), nn.BatchNorm2d(96)
        self.second, self.second_norm = _convolution(96, 128, 3, groups=4), nn.BatchNorm2d(128)
        self.last, self.head = _convolution(128, 40, 3), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.first_norm(self.first(x)))
        batch, width, rows, columns = x.shape
        x = x.view(batch, 4, width // 4, rows, columns).transpose(1, 2).reshape(x.shape)
        x = torch.relu(self.second_norm(self.second(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Outward(nn.Module):
    """A transposed convolution of four groups, and one of single channels behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 64), nn.BatchNorm2d(64)
        self.larger = nn.ConvTranspose2d(64, 96, 2, stride=2, groups=4)
        self.larger_norm = nn.BatchNorm2d(96)
        self.single = nn.ConvTranspose2d(96, 96, 3, padding=1, groups=96)
        self.last, self.last_norm = _convolution(96, 72, 3), nn.BatchNorm2d(72)
        self.head = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.single(torch.relu(self.larger_norm(self.larger(x)))))
        return self.head(torch.relu(self.last_norm(self.last(x))).mean((2, 3)))


class Paths(nn.Module):
    """Two convolutions of four groups beside each other, weighed and added (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 64), nn.BatchNorm2d(64)
        self.middle = SelectiveKernel(64, 96, groups=4, rd_channels=8)
        self.outward, self.outward_norm = _convolution(96, 72, 1), nn.BatchNorm2d(72)
        self.head = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(torch.relu(self.stem_norm(self.stem(x))))
        return self.head(torch.relu(self.outward_norm(self.outward(x))).mean((2, 3)))


class Splits(nn.Module):
    """Splits of one grouped convolution, weighed and added (ResNeSt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 60), nn.BatchNorm2d(60)
        self.middle = SplitAttn(60, 48, radix=3, rd_channels=8, norm_layer=nn.BatchNorm2d)
        self.outward, self.outward_norm = _convolution(48, 72, 1), nn.BatchNorm2d(72)
        self.head = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(torch.relu(self.stem_norm(self.stem(x))))
        return self.head(torch.relu(self.outward_norm(self.outward(x))).mean((2, 3)))


class Kept(nn.Module):
    """A convolution of four groups, one of which reads the picture as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = _convolution(3, 33), _convolution(36, 48, 3, groups=4)
        self.last, self.head = _convolution(48, 40, 3), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.stem(x)), x], 1)
        x = torch.relu(self.last(torch.relu(self.middle(x))))
        return self.head(x.mean((2, 3)))


class Straddling(nn.Module):
    """A GroupNorm of whose groups one holds channels of both parts that it normalises."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.one, self.other = _convolution(3, 20), _convolution(3, 12)
        self.norm, self.last = nn.GroupNorm(groups, 32), _convolution(32, 40, 3)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.one(x), self.other(x)], 1))
        return self.head(torch.relu(self.last(torch.relu(x))).mean((2, 3)))


EXCHANGED: dict[str, Callable[[], nn.Module]] = {
    "grouped convolution": Grouped,
    "group norms": group_normed,
    "nested": nested,
    "shuffled": Shuffled,
    "transposed": Outward,
    "paths": Paths,
    "splits": Splits,
}
