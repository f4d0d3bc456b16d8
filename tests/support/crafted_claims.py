"""Models that nobody marked, and the claims of a claimant as attacker against them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from passportize.attacks import crafted_claims as attack
from passportize.attacks.crafted_claims import Craft, Try, judged_claim

SHAPES = {
    "a.weight": (24, 3, 3, 3),
    "b.weight": (24, 3, 3, 3),
    "c.weight": (16, 24),
    "d.weight": (16, 24),
    "e.weight": (8, 300),
}
KINDS = ("random", "correlated", "equal", "zero", "ternary", "half")


def untouched_model(kind: str) -> dict[str, Tensor]:
    """Weights of one of the :data:`KINDS`, by name."""
    generator = torch.Generator().manual_seed(len(kind))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = {}
    for name, shape in SHAPES.items():
        one = normal(1, *shape[1:])
        made[name] = {
            "random": lambda shape=shape: normal(*shape),
            "correlated": lambda shape=shape, one=one: one + 0.2 * normal(*shape) + 0.3,
            "equal": lambda shape=shape, one=one: one.expand(shape).clone(),
            "zero": lambda shape=shape: torch.zeros(shape),
            "ternary": lambda shape=shape: normal(*shape).round().clamp(-1, 1),
            "half": lambda shape=shape: normal(*shape).half(),
        }[kind]()
    return made


judged = judged_claim


def craft(dice: random.Random) -> Craft:
    """Anything that a claim may say of such a model."""
    return attack.crafted_claim(dice, SHAPES)


def random_tries(kind: str, tries: int, seed: int = 0) -> list[Try]:
    """So many claims at random, against one kind of model."""
    dice, tensors = random.Random(f"{kind} {seed}"), untouched_model(kind)
    return [judged(tensors, craft(dice)) for _ in range(tries)]


def climbing_tries(kind: str, tries: int, seed: int = 0) -> list[Try]:
    """So many claims, each a change of the best before it."""
    dice = random.Random(f"climbing {kind} {seed}")
    return attack.climbing_tries(untouched_model(kind), tries, dice)
