"""What is done to a marked network: attacks of the bench, each changes a plain model in place.

The projections use inputs of the thief's own; the others need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from passportize.attacks import (
    add_noise,
    drown_weights,
    project_weights,
    prune_weights,
    quantise_weights,
)

__all__ = ["THIEVES", "Thief"]

Thief = Callable[[nn.Module, Sequence[Tensor]], None]


def project(energy: float) -> Thief:
    """On the directions that hold this share of the energy of the thief's inputs."""
    return lambda model, inputs: _done(project_weights(model, inputs, energy=energy))


def fit(shrink: float) -> Thief:
    """Each layer to its own outputs on the thief's inputs, with a penalty on its weight."""
    return lambda model, inputs: _done(project_weights(model, inputs, energy=None, shrink=shrink))


def drown(share: float, level: float = 0.3) -> Thief:
    """Noise where inputs have the size of a level, so large a share of what each weight computes.

    At the default level marks of trained models lie; far below it hardly any input is.
    """
    return lambda model, inputs: _done(
        drown_weights(model, inputs, share, level, torch.Generator().manual_seed(7))
    )


def in_turn(*thieves: Thief) -> Thief:
    """One after the other."""

    def steal(model: nn.Module, inputs: Sequence[Tensor]) -> None:
        for thief in thieves:
            thief(model, inputs)

    return steal


def _done(names: list[str]) -> None:
    if not names:
        raise ValueError("no weight was changed")


THIEVES: dict[str, Thief] = {
    "nothing": lambda model, inputs: None,
    "projected on 99.99 %": project(0.9999),
    "projected on 99.9 %": project(0.999),
    "projected on 99 %": project(0.99),
    "projected on 97 %": project(0.97),
    "projected on 95 %": project(0.95),
    "fitted anew, penalty 0.001": fit(1e-3),
    "drowned, 3 %": drown(0.03),
    "drowned, 10 %": drown(0.1),
    "drowned below, 0.03 %": drown(0.0003, 1e-4),
    "drowned below, 0.1 %": drown(0.001, 1e-4),
    "projected on 97 %, drowned below": in_turn(project(0.97), drown(0.0003, 1e-4)),
    "30 % pruned": lambda model, inputs: prune_weights(model, 0.3),
    "60 % pruned": lambda model, inputs: prune_weights(model, 0.6),
    "int8": lambda model, inputs: quantise_weights(model, 8),
    "int4": lambda model, inputs: quantise_weights(model, 4),
    "noise of 20 %": lambda model, inputs: add_noise(model, 0.2, torch.Generator().manual_seed(5)),
}
