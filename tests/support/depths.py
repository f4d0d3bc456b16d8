"""Small models with linear layers in a row, and copies of releases with other layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.attacks.cut_layers import cut_layers
from passportize.attacks.multiply_layers import multiply_layers
from tests.support.widths import EXAMPLE, FAMILIES, Dense, Residual, _normed


class Chained(nn.Module):
    """A narrow layer before a wide one, a separable convolution, square and low-rank pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normed(3, 32)
        self.narrow, self.wide = _normed(32, 12), _normed(12, 48, 1)
        self.deep = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False)
        self.point = _normed(48, 40, 1)
        self.square, self.again = _normed(40, 40, 1), _normed(40, 40, 1)
        self.last = _normed(40, 64)
        self.low, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(self.narrow(x)))
        x = torch.relu(self.point(self.deep(x)))
        x = torch.relu(self.again(self.square(x)))
        return self.head(self.low(torch.relu(self.last(x)).mean((2, 3))))


FAMILIES["chained"] = Chained


class Shared(Residual):
    """The same with layers that a thief has put in where several layers read one tensor."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(width)
        self.in_front = nn.Conv2d(width, width, 1, bias=False)
        self.on_skip = nn.Conv2d(width, width, 1, bias=False)
        self.behind = nn.Linear(2 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_front(torch.relu(self.stem(x)))
        x = torch.relu(self.on_skip(x) + self.second(torch.relu(self.first(x))))
        x = torch.relu(self.skip(x) + self.fourth(torch.relu(self.third(x))))
        return self.head(self.behind(x.mean((2, 3))))


@torch.no_grad()
def shared(model: nn.Module) -> nn.Module:
    """A :class:`Residual` as :class:`Shared`, with random matrices where one undoes the other."""
    found = Shared().eval()
    found.load_state_dict(model.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0] * 1.5
    other = torch.linalg.qr(torch.randn(48, 48, generator=generator))[0]
    found.in_front.weight.copy_(matrix[:, :, None, None])
    found.on_skip.weight.copy_(matrix.inverse()[:, :, None, None])
    inner = found.first[0].weight
    inner.copy_(torch.einsum("omkl,mi->oikl", inner.clone(), matrix.inverse()))
    found.behind.weight.copy_(other)
    found.behind.bias.zero_()
    found.head.weight.copy_(found.head.weight @ other.t())
    return found


class WithoutFactors(nn.Module):
    """A LayerNorm that lost its factors to what reads it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def reshaped(model: nn.Module, *ways: str, seed: int = 1) -> nn.Module:
    """A model with layers cut, made of norms, put in or multiplied, one way after the other."""
    for way in ways:
        if way == "multiplied":
            multiply_layers(model, EXAMPLE)
        else:
            generator = torch.Generator().manual_seed(seed)
            cut_layers(model, generator, way=way, example_inputs=EXAMPLE)
    return model


__all__ = ["Chained", "Dense", "Shared", "WithoutFactors", "reshaped", "shared"]
