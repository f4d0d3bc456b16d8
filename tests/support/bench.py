"""A small network protected by every scheme of the bench and trained on the digits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks import Means, Rating, rate, run_attack
from passportize.schemes import Protection, Release, find_scheme
from tests.support.small_protected import images

OWNER = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
EVE = pp.Passport.generate("Eve", date="2026-02-01", secret=b"e" * 32)
SCHEMES = ("deepipr", "keyed", "paper", "signature", "uchida")
SETTINGS: dict[str, dict[str, Any]] = {
    # As published it does not bear BatchNorm.
    "deepipr": {"own_statistics": True},
    # These few epochs take more than the published weights.
    "paper": {"sign_weight": 1.0},
    "uchida": {"weight": 0.05},
}


class BenchNet(nn.Module):
    """Three convolutions with norms and a classifier; 160 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


@functools.cache
def batches(split: str) -> list[tuple[Tensor, Tensor]]:
    x, y = images(split)
    size = 64 if split == "train" else 120
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(protection: Protection, epochs: int = 4, rate: float = 0.1) -> Release:
    """Train a protection with a cosine schedule, and release it."""
    optimizer = torch.optim.SGD(protection.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    x, y = images("train")
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    protection.model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss = protection.loss(x[batch], y[batch], nn.functional.cross_entropy)
            loss.backward()
            optimizer.step()
            schedule.step()
    return protection.release()


@functools.cache
def released(name: str) -> Release:
    """A trained release of a scheme; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scheme = find_scheme(name, **SETTINGS.get(name, {}))
        return trained(scheme.protect(BenchNet(), OWNER, images("train")[0][:4]))


def means(release: Release, **changes: Any) -> Means:
    """What an attacker of the tests has."""
    given: dict[str, Any] = {
        "data": batches("train")[:10],
        "steps": 40,
        "learning_rate": 0.02,
        "scheme": release.scheme,
        "passport": EVE,
        "example_inputs": images("train")[0][:4],
    }
    return Means(**{**given, **changes})


def attacked(attack: str, scheme: str, has: dict[str, Any] | None = None, **options: Any) -> Rating:
    """One attack on one scheme, judged."""
    release = released(scheme)
    outcome = run_attack(attack, release.model, means(release, **(has or {})), **options)
    return rate(release, outcome, batches("test"))


def data_of_test() -> list[tuple[Tensor, Tensor]]:
    """For the command line, which calls functions by name."""
    return batches("test")
