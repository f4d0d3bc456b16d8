"""What is done to a marked network: each changes a plain model in place.

The projections use inputs of the thief's own; the others need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from passportize.attacks import project_weights
from passportize.tracing.weight_layers import is_weight_module

__all__ = ["THIEVES", "Thief"]

Thief = Callable[[nn.Module, Sequence[Tensor]], None]


def _weights(model: nn.Module) -> list[Tensor]:
    return [
        module.get_parameter("weight") for module in model.modules() if is_weight_module(module)
    ]


def project(energy: float) -> Thief:
    """On the directions that hold this share of the energy of the thief's inputs."""
    return lambda model, inputs: _done(project_weights(model, inputs, energy=energy))


def fit(shrink: float) -> Thief:
    """Each layer to its own outputs on the thief's inputs, with a penalty on its weight."""
    return lambda model, inputs: _done(project_weights(model, inputs, energy=None, shrink=shrink))


def _done(names: list[str]) -> None:
    if not names:
        raise ValueError("no weight was projected")


@torch.no_grad()
def _prune(model: nn.Module, share: float) -> None:
    every = torch.cat([weight.abs().flatten() for weight in _weights(model)])
    limit = every.kthvalue(int(share * len(every))).values
    for weight in _weights(model):
        weight.mul_(weight.abs() > limit)


@torch.no_grad()
def _quantise(model: nn.Module, bits: int) -> None:
    """Symmetric, one scale for each output channel: the usual one for weights."""
    steps = 2 ** (bits - 1) - 1
    for weight in _weights(model):
        scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12) / steps
        scale = scale.view(-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight / scale).round().clamp(-steps, steps) * scale)


@torch.no_grad()
def _noise(model: nn.Module, size: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in _weights(model):
        noise = torch.randn(weight.shape, generator=generator)
        weight.add_(noise * weight.std() * size)


THIEVES: dict[str, Thief] = {
    "nothing": lambda model, inputs: None,
    "projected on 99.99 %": project(0.9999),
    "fitted anew, penalty 0.001": fit(1e-3),
    "30 % pruned": lambda model, inputs: _prune(model, 0.3),
    "60 % pruned": lambda model, inputs: _prune(model, 0.6),
    "int8": lambda model, inputs: _quantise(model, 8),
    "int4": lambda model, inputs: _quantise(model, 4),
    "noise of 20 %": lambda model, inputs: _noise(model, 0.2),
}
