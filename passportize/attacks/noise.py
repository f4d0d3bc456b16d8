"""Random noise on every weight of a convolution or linear layer."""

from __future__ import annotations

import torch
from torch import nn

from passportize.attacks.attack import Means, register_attack
from passportize.attacks.weights import matrix_weights
from passportize.errors import InvalidArgument

__all__ = ["add_noise"]


@torch.no_grad()
def add_noise(model: nn.Module, size: float, generator: torch.Generator | None = None) -> None:
    """Add normal noise to every weight of a convolution or linear layer, in place.

    Args:
        model: A plain model.
        size: Standard deviation of the noise, in standard deviations of the weight.
        generator: Source of the noise, on the CPU.

    Raises:
        InvalidArgument: A negative size, or there is no such layer.
    """
    if not 0 <= size < float("inf"):
        raise InvalidArgument(f"add_noise: size={size!r} must be a finite number, 0 or more")
    for weight in matrix_weights(model, "add_noise").values():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        spread = weight.double().std(unbiased=False).cpu()
        weight.add_((noise * spread * size).to(weight.device, weight.dtype))


@register_attack(
    "noise",
    kind="removal",
    source="usual",
    expected="removes nothing before the model is worthless",
)
def _attack(model: nn.Module, means: Means, *, size: float = 0.2) -> None:
    """Normal noise on every weight, in its own standard deviations."""
    add_noise(model, size, torch.Generator().manual_seed(means.seed))
