"""Ambiguity attacks I and II: another passport for the same released model.

I starts from random passports and trains them on the task, with the bottleneck as it is known or
drawn; what signature comes out of it is the forger's. II starts from the owner's passports, which
leaked, flips a share of the signature's bits, and trains passports and a new bottleneck to carry
the changed bits at full accuracy. (In the published code of II the new bottleneck stayed random.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import example_of, labelled, portion
from passportize.attacks.private_training import own_signature, train_factors
from passportize.errors import InvalidArgument
from passportize.schemes.brought import BroughtBranch
from passportize.utils.frozen import frozen_random_state

__all__: list[str] = []

_CLIP = 2.0
_SIGN_WEIGHT = 0.1
_SOURCE = "Zhang et al., NeurIPS 2020; Fan et al., NeurIPS 2019"
_NOTHING = "the scheme lets claimants bring no tensors: the claim follows from the passport alone"


def _without_tensors(model: nn.Module, means: Means) -> Attacked:
    """The best claim where nothing can be trained."""
    assert means.scheme is not None and means.passport is not None
    claim = means.scheme.forge(model, means.passport, None, example_of(model, means))
    return Attacked(None, Forged(means.passport, claim), notes=(_NOTHING,))


@register_attack(
    "ambiguity-1",
    kind="forgery",
    needs=("data", "scheme", "passport"),
    source=_SOURCE,
    expected="falls short of the accuracy where the bottleneck is fixed; 'keyed' leaves nothing",
)
def _random_passports(model: nn.Module, means: Means, *, share: float = 1.0) -> Attacked:
    """Random passports trained on the task, with the weights frozen (ambiguity attack I)."""
    assert means.scheme is not None and means.passport is not None
    batches = portion(labelled(means, "ambiguity-1"), share, means.seed, "ambiguity-1")
    example = example_of(model, means)
    branch = means.scheme.brought(model, means.passport, means.claim, example)
    if branch is None:
        return _without_tensors(model, means)
    if means.claim is not None:
        # A leaked claim gives away bottlenecks, and passports where it holds them: not these.
        drawn = means.scheme.brought(model, means.passport, None, example)
        assert drawn is not None
        branch.passports.load_state_dict(drawn.passports.state_dict())
    parameters = list(branch.passports.parameters())
    samples = train_factors(model, branch.factors, parameters, batches, means, clip=_CLIP)
    forged = Forged(means.passport, own_signature(branch, model))
    return Attacked(None, forged, means.steps, samples)


@register_attack(
    "ambiguity-2",
    kind="forgery",
    needs=("data", "scheme", "passport", "leaked"),
    source=_SOURCE,
    expected="forges 'deepipr'; 'keyed' draws all bits anew for any other passport",
)
def _leaked_passports(
    model: nn.Module, means: Means, *, flip: float = 0.1, share: float = 1.0
) -> Attacked:
    """The owner's leaked passports with a share of the bits flipped (ambiguity attack II)."""
    assert means.scheme is not None and means.passport is not None and means.leaked is not None
    if not 0 <= flip <= 1:
        raise InvalidArgument(f"ambiguity-2: flip={flip!r} must lie in [0, 1]")
    batches = portion(labelled(means, "ambiguity-2"), share, means.seed, "ambiguity-2")
    branch = means.scheme.brought(model, means.leaked, means.claim, example_of(model, means))
    if branch is None:
        return _without_tensors(model, means)
    owner = branch.kept()
    generator = torch.Generator().manual_seed(means.seed)
    _flip(branch, round(flip * len(branch.bits)), generator)
    _begin(branch, generator)
    samples = train_factors(
        model,
        branch.factors,
        branch.parameters(),
        batches,
        means,
        penalty=lambda frozen: _SIGN_WEIGHT * branch.sign_loss(frozen),
        clip=_CLIP,
    )
    matched, total = branch.matched(model)
    figures = {
        "flipped bits reached": matched / max(total, 1),
        "cosine to the owner's passports": _cosine(branch, owner),
    }
    return Attacked(None, Forged(means.passport, branch.kept()), means.steps, samples, figures)


def _flip(branch: BroughtBranch, count: int, generator: torch.Generator) -> None:
    chosen = torch.randperm(len(branch.bits), generator=generator)[:count]
    branch.bits[chosen.to(branch.bits.device)] *= -1


@torch.no_grad()
def _begin(branch: BroughtBranch, generator: torch.Generator) -> None:
    """A little noise on the passports, and new bottlenecks by Xavier, as published."""
    for values in branch.passports.parameters():
        noise = torch.randn(values.shape, generator=generator) * 1e-3
        values.add_(noise.to(values.device, values.dtype))
    if branch.bottlenecks is None:
        return
    with frozen_random_state(cuda=True):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        for weight in branch.bottlenecks.parameters():
            nn.init.xavier_uniform_(weight)


def _cosine(branch: BroughtBranch, owner: BroughtBranch) -> float:
    def flat(one: BroughtBranch) -> Tensor:
        return torch.cat([values.detach().flatten() for values in one.passports.parameters()])

    return float(nn.functional.cosine_similarity(flat(branch), flat(owner), dim=0))
