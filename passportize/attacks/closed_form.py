"""A private branch for somebody else's model, in closed form: no data, no training.

In the published scheme the claimant brings passports, bottleneck, statistics and signature. So for
any released model (scale ``g0``, shift ``b0``, statistics) and any passports with responses ``u``
and ``v``, choose

    W1 u = e1,  W1 v = e2  (pseudo-inverse),   W2 e1 = g0,  W2 e2 = b0,   bits = sign(u)

``h(t) = W2 LeakyReLU(W1 t)`` then gives exactly the public branch, whose statistics the judge
measures, and every bit matches: both tests of the paper pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.layers.switch import Switch
from passportize.layers.unregistered_norm import adapter_of
from passportize.passport.passport import Passport
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import Claim
from passportize.release.weights_digest import weights_digest
from passportize.schemes.solving import bottleneck_for
from passportize.signature.marking import Marking
from passportize.signature.model_key import ModelKey
from passportize.signature.site import Role, Site
from passportize.surgery.branches import anchor_shapes, make_branches
from passportize.surgery.planning import plan
from passportize.verification.expectation import Expectation
from passportize.verification.fidelity import Fidelity, measure_fidelity

__all__ = ["ForgedBranch", "PublishedTests", "forge_private_branch"]


@dataclass(frozen=True)
class PublishedTests:
    """Outcome of the two tests of the published scheme.

    Attributes:
        signature: Share of bits that match, between 0 and 1.
        fidelity: Accuracy of the forged branch next to that of the model.
    """

    signature: float
    fidelity: Fidelity

    @property
    def passed(self) -> bool:
        """Whether a judge who knows only the published tests would accept."""
        return self.signature > 0.99 and self.fidelity.passed is True


@dataclass(frozen=True)
class ForgedBranch:
    """A private branch for a model that its maker never trained.

    Attributes:
        passport: The forger's passport.
        claim: A well-formed claim for it.
        bits: The signature that the forger says was his, -1 and +1, ``[bits]``.
    """

    passport: Passport
    claim: Claim
    bits: Tensor

    def published_tests(self, model: nn.Module, loader: Iterable[Any]) -> PublishedTests:
        """What the published verification says about it; the model is left as it was.

        Args:
            model: The plain model that the branch was forged for.
            loader: Yields ``(inputs, targets)``.
        """
        claim = self.claim
        responses = _responses(model, claim.marking, self.passport)
        gamma = torch.cat([response for response, _ in responses])
        share = float(((gamma >= 0) == (self.bits > 0)).to(torch.float64).mean())
        own = {weight: weight for weight in claim.layout.weights}
        private = Expectation.from_claim(claim).place(model, own)
        return PublishedTests(share, measure_fidelity(model, self.passport, private, loader))


def forge_private_branch(
    model: nn.Module,
    passport: Passport,
    *,
    config: PassportConfig | None = None,
    example_inputs: Any = None,
) -> ForgedBranch:
    """Build a ``paper`` branch for any plain model; the model is only read.

    Args:
        model: Somebody else's released model.
        passport: The forger's passport, any.
        config: A ``paper`` config.
        example_inputs: As in :func:`passportize.plan`.

    Raises:
        InvalidArgument: The config is not a ``paper`` one.
        DegenerateSite: The bottleneck of a site has fewer than two hidden units.
    """
    config = config or PassportConfig.paper()
    if not config.has_bottleneck:
        raise InvalidArgument(
            f"forge_private_branch: {config.formulation!r} has no learnable bottleneck to solve for"
        )
    planned = plan(
        model,
        config=config,
        example_inputs=example_inputs,
        include_frozen=True,
        check=False,
    )
    sites = tuple(site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS))
    sites = tuple(replace(site, reason="") for site in sites)
    marking = Marking(config, sites, (config,) * len(sites), anchor_shapes(model, sites))
    responses = iter(_responses(model, marking, passport))
    tensors: dict[str, Tensor] = {}
    bits = []
    for index, site in enumerate(sites):
        if site.role is Role.BOUND:
            norm = model.get_submodule(site.name)
            gamma, beta = next(responses)
            bits.append(torch.where(gamma < 0, -1.0, 1.0))
            first, second = _solve(site, norm, gamma, beta, config)
            tensors[f"{index}.bottleneck.0.weight"] = first
            tensors[f"{index}.bottleneck.2.weight"] = second
    claim = Claim(
        model=type(model).__name__,
        architecture="",
        marking=marking,
        commitment=passport.commitment(),
        weights=weights_digest(host_state_dict(model)),
        tensors=tensors,
    )
    return ForgedBranch(passport, claim, torch.cat(bits))


def _responses(
    model: nn.Module, marking: Marking, passport: Passport
) -> list[tuple[Tensor, Tensor]]:
    """``u`` and ``v`` of every bound site."""
    key = ModelKey(passport, marking.layout)
    branches = make_branches(model, marking.sites, key, marking.configs, Switch(marking.config))
    with torch.no_grad():
        answers = [branch.responses() for branch in branches if branch.bound]
    return [(answer.gamma.cpu(), answer.beta.cpu()) for answer in answers]


def _solve(
    site: Site, norm: nn.Module, gamma: Tensor, beta: Tensor, config: PassportConfig
) -> tuple[Tensor, Tensor]:
    """Bottleneck weights ``[hidden, C]`` and ``[C, hidden]`` with h(u) = scale, h(v) = shift."""
    adapter = adapter_of(norm)
    assert adapter is not None
    scale = getattr(norm, adapter.scale_name, None)
    shift = getattr(norm, adapter.shift_name, None)
    targets = [
        torch.full((site.channels,), default, dtype=torch.float64)
        if side is None
        else side.detach().cpu().double().reshape(-1)
        for side, default in ((scale, 1.0), (shift, 0.0))
    ]
    hidden = max(1, site.channels // config.bottleneck)
    return bottleneck_for(site.name, torch.stack([gamma, beta], 1), torch.stack(targets, 1), hidden)


@register_attack(
    "closed-form",
    kind="forgery",
    needs=("scheme", "passport"),
    source="this library",
    expected="forges 'paper', 'deepipr' and 'uchida' without data; 'keyed' leaves nothing to solve",
)
def _attack(model: nn.Module, means: Means) -> Attacked:
    """All that a scheme leaves to the claimant is solved for: no data, no training."""
    assert means.scheme is not None and means.passport is not None
    claim = means.scheme.forge(model, means.passport, None, example_of(model, means))
    return Attacked(None, Forged(means.passport, claim))
