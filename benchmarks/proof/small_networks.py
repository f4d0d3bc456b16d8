"""Small networks of several widths, plain and marked, as their owners would publish them."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import torch
from torch import nn

import passportize as pp
from passportize.data.images import ImageData
from passportize.demo.recipe import train
from passportize.layers.model import passport_layers
from passportize.signature.vectors import SignVectors
from passportize.surgery.branches import take_out_branches

__all__ = ["PLAIN", "SHARED", "WIDTHS", "Recipe", "small_network", "trained"]

WIDTHS = (16, 24, 32)
PLAIN, SHARED = "plain", "shared vectors"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are what one owner does always."""

    epochs: int = 6
    lr: float = 0.05
    batch: int = 64

    @staticmethod
    def drawn(seed: int) -> Recipe:
        """A recipe that trains these networks as well: within half and twice the usual rate."""
        draws = random.Random(seed)
        return Recipe(
            draws.randint(4, 9), 0.025 * 4 ** draws.random(), draws.choice((32, 48, 64, 96))
        )


def small_network(width: int, seed: int) -> nn.Module:
    """Four convolutions with BatchNorm and a classifier; rows of 9 to 72 times the width."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 1
    for index, factor in enumerate((1, 2, 4, 8)):
        layers += [
            nn.Conv2d(channels, factor * width, 3, stride=1 + (index > 0), padding=1, bias=False),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(),
        ]
        channels = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def trained(kind: str, width: int, seed: int, data: ImageData, recipe: Recipe) -> nn.Module:
    """A network of one kind as its owner would publish it."""
    model = small_network(width, seed)
    if kind == PLAIN:
        train(model, data, **asdict(recipe), seed=seed)
        return model
    passport = pp.Passport.generate("Acme", date="2026-11-28", secret=seed.to_bytes(32, "big"))
    preset = "keyed" if kind == "keyed" else "signature"
    pp.passportize(model, passport, config=pp.PassportConfig.preset(preset))
    if kind == SHARED:
        share_vectors(model)
    pp.embed_signature(model)
    train(model, data, **asdict(recipe), seed=seed)
    take_out_branches(model)
    return model.eval()


def share_vectors(model: nn.Module) -> None:
    """Give all rows of a weight the vectors of the first one, as the published scheme has it."""
    for layer in passport_layers(model).values():
        for side in layer.passport.secret.sides:
            assert isinstance(side, SignVectors)
            side.codes.copy_(side.codes[:1].clone().expand_as(side.codes))
