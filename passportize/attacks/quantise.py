"""Rounding of weights to a few bits: symmetric, one scale for each output channel."""

from __future__ import annotations

import torch
from torch import nn

from passportize.attacks.attack import Means, register_attack
from passportize.attacks.weights import matrix_weights
from passportize.errors import InvalidArgument

__all__ = ["quantise_weights"]


@torch.no_grad()
def quantise_weights(model: nn.Module, bits: int) -> None:
    """Round every weight of a convolution or linear layer, in place; the dtype stays.

    Args:
        model: A plain model.
        bits: 8 for int8, 4 for int4; 2 at least.

    Raises:
        InvalidArgument: ``bits`` is out of range, or there is no such layer.
    """
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise InvalidArgument(f"quantise: bits={bits!r} must be a whole number from 2 to 16")
    steps = 2 ** (bits - 1) - 1
    for name, weight in matrix_weights(model, "quantise").items():
        owner = model.get_submodule(name.rpartition(".")[0])
        # Outputs are counted by the second dimension of a transposed convolution.
        channel = 1 if getattr(owner, "transposed", False) else 0
        others = [dim for dim in range(weight.dim()) if dim != channel]
        scale = weight.abs().double().amax(others, keepdim=True).clamp_min(1e-300) / steps
        weight.copy_((weight.double() / scale).round().clamp(-steps, steps) * scale)


@register_attack(
    "quantise",
    kind="removal",
    source="usual",
    expected="int8 and int4 remove nothing",
)
def _attack(model: nn.Module, means: Means, *, bits: int = 8) -> None:
    """Weights rounded to int8 (bits=8), int4 (bits=4) or any other width."""
    quantise_weights(model, bits)
