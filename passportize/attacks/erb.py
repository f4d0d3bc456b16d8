"""Expanded residual blocks: substitute factors by a little data, with the weights frozen.

The forger puts a normal scale and shift in the place of the secret ones and trains them. Under SGD
the scale is "lazy to flip": its signs rarely cross zero. So a small block is put on top of it:

    IERB, for every channel i:  g''_i = FC_10->1(LReLU(FC_1->10(g_i))) + g_i
    CERB, for the whole layer:  g''   = W2^T LReLU(W1^T g + b1) + b2 + g,    hidden C / 8

(Chen et al., CVPR 2023; the shift has no block). ``block="none"`` is their plain attack. What comes
out, (g'', b), is brought as a claim in whatever way the scheme leaves open. Gradients are reset
before every step, which public copies of the attack forget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import example_of, labelled, portion
from passportize.attacks.private_training import train_factors
from passportize.errors import DegenerateSite, InvalidArgument
from passportize.schemes.brought import Factors, factor_names
from passportize.signature.site import Role, Site
from passportize.surgery.planning import plan
from passportize.utils.frozen import frozen_random_state
from passportize.utils.trees import place_of

__all__ = ["BLOCKS", "Substitute"]

BLOCKS = ("CERB", "IERB", "none")


class _Individual(nn.Module):
    """Two small layers for each channel."""

    def __init__(self, channels: int, hidden: int = 10) -> None:
        super().__init__()
        # As nn.Linear draws them: fan-in 1 and `hidden`.
        self.first = nn.Parameter(torch.empty(channels, hidden).uniform_(-1, 1))
        self.first_bias = nn.Parameter(torch.empty(channels, hidden).uniform_(-1, 1))
        bound = hidden**-0.5
        self.second = nn.Parameter(torch.empty(channels, hidden).uniform_(-bound, bound))
        self.second_bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, scale: Tensor) -> Tensor:
        inner = functional.leaky_relu(scale[:, None] * self.first + self.first_bias)
        return (inner * self.second).sum(1) + self.second_bias + scale


class _Collective(nn.Module):
    """One narrow layer for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 8)
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, scale: Tensor) -> Tensor:
        changed: Tensor = self.second(functional.leaky_relu(self.first(scale))) + scale
        return changed


def _block(block: str, channels: int) -> nn.Module:
    if block == "none":
        return nn.Identity()
    return _Collective(channels) if block == "CERB" else _Individual(channels)


class Substitute(nn.Module):
    """Scale, shift and block for some norms.

    Args:
        sites: The norms.
        block: One of :data:`BLOCKS`.
    """

    def __init__(self, sites: Sequence[Site], block: str) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise InvalidArgument(f"erb: block={block!r} must be one of {', '.join(BLOCKS)}")
        self.names = [site.name for site in sites]
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(site.channels)) for site in sites)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(site.channels)) for site in sites)
        self.blocks = nn.ModuleList(_block(block, site.channels) for site in sites)

    def factors(self) -> Factors:
        """``(g'', b)`` by name of the norm."""
        return {
            name: (block(scale), shift)
            for name, scale, shift, block in zip(
                self.names, self.scales, self.shifts, self.blocks, strict=True
            )
        }


@register_attack(
    "erb",
    kind="forgery",
    needs=("data", "scheme", "passport"),
    source="Chen et al., Effective Ambiguity Attack Against Passport-based DNN Intellectual "
    "Property Protection Schemes through Fully Connected Layer Substitution, CVPR 2023",
    expected="forges 'paper' and 'deepipr'; 'keyed' and 'signature' take no factors from claimants",
)
def _attack(model: nn.Module, means: Means, *, block: str = "CERB", share: float = 0.1) -> Attacked:
    """Substitute factors trained on a share of the data behind an expanded residual block."""
    assert means.scheme is not None and means.passport is not None
    batches = portion(labelled(means, "erb"), share, means.seed, "erb")
    example = example_of(model, means)
    sites = plan(model, example_inputs=example, include_frozen=True, check=False).role(Role.BOUND)
    if not sites:
        raise DegenerateSite(f"erb: {type(model).__name__} has no norm that a passport is bound to")
    for site in sites:
        factor_names(model, site.name)
    with frozen_random_state(cuda=True):
        torch.manual_seed(means.seed)
        substitute = Substitute(sites, block).to(place_of(model))
    samples = train_factors(
        model, lambda _: substitute.factors(), substitute.parameters(), batches, means
    )
    factors = {
        name: (scale.detach(), shift.detach())
        for name, (scale, shift) in substitute.factors().items()
    }
    figures = {}
    if means.leaked is not None:
        # Nobody but the owner can know: for the tables.
        owner = means.scheme.brought(model, means.leaked, means.claim, example)
        if owner is not None:
            figures["BDR"] = _differing_signs(factors, owner.factors(model))
    claim = means.scheme.forge(model, means.passport, factors, example)
    forged = Forged(means.passport, claim)
    return Attacked(None, forged, means.steps, samples, figures)


def _differing_signs(factors: Factors, own: Factors) -> float:
    """Share of the scales whose sign is not the owner's."""
    differing = torch.cat(
        [(factors[name][0] >= 0) != (scale.detach() >= 0) for name, (scale, _) in own.items()]
    )
    return float(differing.double().mean())
