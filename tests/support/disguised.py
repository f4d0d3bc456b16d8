"""Small models with every symmetry that a disguise uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, norm: type[nn.Module], scale: bool) -> None:
        super().__init__()
        self.norm = norm(12)
        self.first, self.second = nn.Linear(12, 32), nn.Linear(32, 12)
        self.scale = nn.Parameter(torch.rand(12) + 0.5) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(nn.functional.gelu(self.first(self.norm(x))))
        return x + (change if self.scale is None else change * self.scale)


class Stream(nn.Module):
    """A residual stream of 12 channels between norms over its channels."""

    def __init__(self, norm: type[nn.Module], scale: bool = False) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 12)
        self.places = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList([_Block(norm, scale) for _ in range(2)])
        self.norm, self.head = norm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Bottlenecks(nn.Module):
    """A linear bottleneck of 6 channels with a skip, and a step that acts on it."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.inward, self.inward_norm = nn.Conv2d(16, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.wide, self.wide_norm = nn.Conv2d(6, 24, 1), nn.BatchNorm2d(24)
        self.narrow, self.narrow_norm = nn.Conv2d(24, 6, 1), nn.BatchNorm2d(6)
        self.step, self.head = step, nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = self.inward_norm(self.inward(x))
        x = x + self.narrow_norm(self.narrow(torch.relu(self.wide_norm(self.wide(x)))))
        return self.head(self.step(x)).mean((2, 3))


class Attention(nn.Module):
    """Three heads of four channels, by the fused step or by products; ``turned`` as by rotary."""

    def __init__(self, fused: bool, turned: bool = False) -> None:
        super().__init__()
        self.fused, self.turned = fused, turned
        self.inward, self.norm = nn.Linear(6, 12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        batch, tokens, _ = x.shape
        packed = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4)
        queries, keys, values = packed.unbind(0)
        if self.turned:
            queries, keys = torch.sin(queries), torch.sin(keys)
        if self.fused:
            seen = nn.functional.scaled_dot_product_attention(queries, keys, values)
        else:
            scores = (queries * 0.5) @ keys.transpose(-2, -1)
            seen = scores.softmax(-1) @ values
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, 12))
        return self.head(self.last(x).mean(1))
