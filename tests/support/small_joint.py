"""A small network with norms of three kinds, and its joint loss as the definition says."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import passportize as pp
from passportize.layers.model import passport_layers, switch_of

PASSPORT = pp.Passport.generate("Trainer", date="2026-01-01", secret=bytes(range(32)))
CLASSES = 3


class Small(nn.Module):
    """Batch, group and layer norm; the middle can be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.GroupNorm(3, 12),
        )
        self.project = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.reentrant is None or not self.training:
            x = self.body(x)
        else:
            x = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(self.norm(self.project(x.mean((2, 3)))))


def small(
    config: pp.PassportConfig | None = None,
    reentrant: bool | None = None,
    dtype: torch.dtype = torch.float64,
    where: str | None = None,
    kind: type[Small] | None = None,
) -> Small:
    torch.manual_seed(1)
    model = (kind or Small)(reentrant).to(dtype)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    inputs = torch.linspace(-1, 1, 2 * 3 * 64, dtype=dtype).reshape(2, 3, 8, 8)
    return pp.passportize(
        model, PASSPORT, config=config, where=where, example_inputs=inputs
    ).train()


def batch(rows: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.arange(rows) % CLASSES


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if "running" in n}


def two_passes(model: Small, x: Tensor, y: Tensor, rows: int) -> Tensor:
    """The joint loss as its definition says: one pass for each branch, then the sign loss."""
    loss = F.cross_entropy(model(x), y)
    config = switch_of(model).config
    if config.has_private_pass:
        with pp.branch(model, "private"):
            private = model(x[:rows])
        weight = config.private_weight * math.sqrt(rows / min(len(x), 32))
        loss = loss + weight * F.cross_entropy(private, y[:rows])
    for layer in passport_layers(model).values():
        loss = loss + layer.private_factors()[2]
    return loss


CONFIGS = {
    "keyed": pp.PassportConfig.keyed(private_fraction=0.5, private_weight=0.7, sign_every=1),
    "paper": pp.PassportConfig.paper(),
    "signature": pp.PassportConfig.signature(sign_every=1),
}
ROWS = {"keyed": 8, "paper": 16, "signature": 0}
