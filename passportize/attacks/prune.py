"""Pruning by magnitude, over the whole model or layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from passportize.attacks.attack import Means, register_attack
from passportize.attacks.weights import matrix_weights
from passportize.errors import InvalidArgument

__all__ = ["SCOPES", "prune_weights"]

SCOPES = ("global", "layer")


@torch.no_grad()
def prune_weights(model: nn.Module, share: float, scope: str = "global") -> None:
    """Set the smallest entries of all convolutions and linear layers to zero, in place.

    Args:
        model: A plain model.
        share: Of the entries, 0 to 1.
        scope: ``"global"`` for the smallest of the whole model, ``"layer"`` for this share of each
            weight.

    Raises:
        InvalidArgument: An argument is out of range, or there is no such layer.
    """
    if not 0 <= share <= 1 or scope not in SCOPES:
        raise InvalidArgument(
            f"prune: share={share!r} must lie in [0, 1], scope={scope!r} be one of "
            f"{', '.join(SCOPES)}"
        )
    weights = list(matrix_weights(model, "prune").values())
    parts = [weights] if scope == "global" else [[weight] for weight in weights]
    for part in parts:
        sizes = torch.cat([weight.abs().flatten().cpu().float() for weight in part])
        kept = torch.ones(len(sizes), dtype=torch.bool)
        kept[sizes.argsort(stable=True)[: round(share * len(sizes))]] = False
        counts = [weight.numel() for weight in part]
        for weight, mask in zip(part, torch.split(kept, counts), strict=True):
            weight.mul_(mask.view(weight.shape).to(weight.device))


@register_attack(
    "prune",
    kind="removal",
    source="usual; Uchida et al. 2017 and all after",
    expected="removes nothing before the model is worthless",
)
def _attack(model: nn.Module, means: Means, *, share: float = 0.5, scope: str = "global") -> None:
    """The smallest weights become zero, of the whole model or of each layer."""
    prune_weights(model, share, scope)
