"""A tiny network trained on the digits with each preset; shared by the tests of verification."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import passportize as pp
from passportize.data.digits import load_digits_images
from passportize.release.claim import claim_of

PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
RATES = {"keyed": 0.1, "signature": 0.1, "paper": 0.1}
# The published weight of the sign loss takes longer than these few epochs.
SETTINGS: dict[str, dict[str, float]] = {"paper": {"sign_weight": 1.0}}


class TinyNet(nn.Module):
    """Three convolutions with norms, and a classifier."""

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = norm(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.bn2 = norm(32)
        self.conv3 = nn.Conv2d(32, 128, 3, stride=2, padding=1, bias=False)
        self.bn3 = norm(128)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


@dataclass(frozen=True)
class Protected:
    """A released model, its claim, and what both branches computed before release."""

    plain: nn.Module
    claim: pp.Claim
    public: Tensor
    private: Tensor | None

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.plain)


@functools.cache
def images(split: str) -> tuple[Tensor, Tensor]:
    return load_digits_images(split)


def loader() -> list[tuple[Tensor, Tensor]]:
    x, y = images("test")
    return list(zip(x.split(120), y.split(120), strict=True))


@functools.cache
def live(preset: str, norm=nn.BatchNorm2d, epochs: int = 5) -> nn.Module:
    """A passportized model after some training; deep-copy it before changing it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyNet(norm)
        pp.passportize(
            model, PASSPORT, config=getattr(pp.PassportConfig, preset)(**SETTINGS.get(preset, {}))
        )
        train(model, epochs, RATES[preset])
    return model


def train(model: nn.Module, epochs: int, rate: float) -> None:
    x, y = images("train")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            loss = pp.joint_loss(model, x[batch], y[batch], nn.functional.cross_entropy)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@functools.cache
def protected(preset: str, norm=nn.BatchNorm2d) -> Protected:
    model = copy.deepcopy(live(preset, norm))
    x, _ = images("test")
    private = None
    with torch.no_grad():
        public = model(x)
        if preset != "signature":
            with pp.branch(model, "private"):
                private = model(x)
    claim = claim_of(model)
    for module in model.modules():
        if isinstance(module, pp.PassportLayer):
            module.passport.switch.saved = True
    return Protected(pp.unpassportize(model), claim, public, private)


def accuracy(scores: Tensor) -> float:
    return 100.0 * float((scores.argmax(1) == images("test")[1]).double().mean())
