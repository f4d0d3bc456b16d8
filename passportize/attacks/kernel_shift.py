"""Shifted kernels: a disguise of weight-standardised convolutions that changes no output.

Such a convolution takes the mean from every kernel before it uses it, so a constant added to a
kernel does nothing. But it turns every response of the weight as it lies in the file: with a
large constant ``w . s`` follows ``sum(s)`` and no longer the weights, and the bits of all rows are
the same. Responses of kernels that are centred first (``AnchorPart.centred``) do not move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.errors import InvalidArgument
from passportize.tracing.weight_layers import standardises_weight

__all__ = ["ShiftedWeight", "shift_standardised_kernels"]


@dataclass(frozen=True)
class ShiftedWeight:
    """One weight whose kernels were shifted.

    Attributes:
        weight: Name of the weight.
        shifts: What was added to each kernel, float64 ``[out_channels]``.
    """

    weight: str
    shifts: Tensor


@torch.no_grad()
def shift_standardised_kernels(
    model: nn.Module, generator: torch.Generator | None = None, size: float = 10.0
) -> list[ShiftedWeight]:
    """Add a constant to every kernel of every weight-standardised convolution, in place.

    The model computes what it did before, up to rounding.

    Args:
        model: A plain model.
        generator: Source of the random signs.
        size: The constants, in units of a kernel's root mean square.

    Returns:
        What was done, one entry per weight.

    Raises:
        InvalidArgument: A negative size.
    """
    if not 0.0 <= size < float("inf"):
        raise InvalidArgument(
            f"shift_standardised_kernels: size={size!r} must be a finite number, 0 or more"
        )
    done = []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or not standardises_weight(module):
            continue
        rows = weight.detach().double().flatten(1)
        signs = torch.rand(len(rows), generator=generator, dtype=torch.float64) < 0.5
        length = size * rows.square().mean(1).sqrt()
        shifts = torch.where(signs.to(length.device), -length, length)
        weight.copy_((rows + shifts[:, None]).view(weight.shape))
        done.append(ShiftedWeight(names[id(weight)], shifts.cpu()))
    return done


@register_attack(
    "kernel-shift",
    kind="removal",
    source="this library",
    expected="spoils what is read from standardised kernels as they lie; here less their mean",
)
def _attack(model: nn.Module, means: Means, *, size: float = 10.0) -> Attacked:
    """A constant added to the kernels of weight-standardised convolutions; no output changes."""
    done = shift_standardised_kernels(model, torch.Generator().manual_seed(means.seed), size)
    if not done:
        raise InvalidArgument(
            f"kernel-shift: {type(model).__name__} has no weight-standardised convolution"
        )
    return Attacked(figures={"weights": len(done)})
