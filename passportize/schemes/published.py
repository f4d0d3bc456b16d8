"""The published passport schemes: with a bottleneck (2020), and without (2019).

Both let the claimant bring what makes the private branch work. ``paper`` is trained as
:meth:`passportize.PassportConfig.paper` has it; its owner's claim is read as every claim of this
library, without undoing disguises, and what others bring for it is judged by the published tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.schemes.brought import (
    BroughtBranch,
    Factors,
    factor_names,
    fresh_statistics,
    private_call,
)
from passportize.schemes.judging import judge_branch
from passportize.schemes.own import OwnScheme, finding_of
from passportize.schemes.registry import register_scheme
from passportize.schemes.scheme import Finding, Protection, Release, Scheme
from passportize.schemes.solving import solve_bottlenecks, solve_passports
from passportize.utils.trees import call_model
from passportize.verification.verification import verify

__all__ = ["DeepIPR", "Paper"]


@register_scheme
class Paper(OwnScheme):
    """Passport-aware normalization: two branches, a bottleneck that the claimant brings."""

    name = "paper"
    preset = "paper"
    embedded = False
    source = "Zhang et al., Passport-aware Normalization for Deep Model Protection, NeurIPS 2020"

    def verify(
        self,
        suspect: nn.Module,
        passport: Passport,
        claim: Any,
        loader: Iterable[Any] | None = None,
        released: nn.Module | None = None,
    ) -> Finding:
        """Bits for an owner's claim; what a claimant brings must be accurate as well.

        After fine-tuning the published evaluation reads the signature alone.
        """
        if isinstance(claim, BroughtBranch):
            return judge_branch(suspect, claim, loader, own_statistics=True)
        return finding_of(verify(suspect, passport, claim, loader))

    def forge(
        self,
        model: nn.Module,
        passport: Passport,
        factors: Factors | None = None,
        example_inputs: Any = None,
    ) -> BroughtBranch:
        """Any passports, and the bottlenecks that make the wanted factors of them."""
        branch = BroughtBranch.drawn(model, passport, True, example_inputs)
        return solve_bottlenecks(branch, model, factors or released_factors(model, branch))

    def brought(
        self,
        model: nn.Module,
        passport: Passport,
        claim: Any = None,
        example_inputs: Any = None,
    ) -> BroughtBranch:
        """Passports of a secret; bottlenecks of a claim where there is one, drawn ones else."""
        branch = BroughtBranch.drawn(model, passport, True, example_inputs)
        if isinstance(claim, Claim):
            names = [site.name for site in claim.sites]
            assert branch.bottlenecks is not None
            for site, learned in zip(branch.sites, branch.bottlenecks, strict=True):
                if site.name in names:
                    tensors = claim.of_site(names.index(site.name))
                    learned.load_state_dict(
                        {name.removeprefix("bottleneck."): each for name, each in tensors.items()}
                    )
        return branch


@register_scheme
class DeepIPR(Scheme):
    """Passports without a bottleneck: scale and shift are the responses; private passports (V2).

    As published, both branches share running statistics, which suits GroupNorm alone: with
    BatchNorm the accuracy falls, which is what the bottleneck scheme was made to mend.

    Args:
        sign_weight: Of the sign loss.
        margin: Of the sign loss.
        own_statistics: Give the private branch running statistics of its own.
    """

    name = "deepipr"
    source = "Fan et al., Rethinking Deep Neural Network Ownership Verification, NeurIPS 2019"

    def __init__(
        self, sign_weight: float = 0.1, margin: float = 0.1, own_statistics: bool = False
    ) -> None:
        self.sign_weight, self.margin = sign_weight, margin
        self.own_statistics = own_statistics

    def protect(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Protection:
        """Random passports for every norm that can be bound; nothing of the model changes."""
        return _DeepIPRProtection(self, model, passport, example_inputs)

    def verify(
        self,
        suspect: nn.Module,
        passport: Passport,
        claim: Any,
        loader: Iterable[Any] | None = None,
        released: nn.Module | None = None,
    ) -> Finding:
        """The published tests on the passports that the claimant brings."""
        return judge_branch(suspect, claim, loader, self.own_statistics)

    def forge(
        self,
        model: nn.Module,
        passport: Passport,
        factors: Factors | None = None,
        example_inputs: Any = None,
    ) -> BroughtBranch:
        """The passports nearest to drawn ones whose responses are the wanted factors."""
        branch = BroughtBranch.drawn(model, passport, False, example_inputs)
        return solve_passports(branch, model, factors or released_factors(model, branch))

    def brought(
        self,
        model: nn.Module,
        passport: Passport,
        claim: Any = None,
        example_inputs: Any = None,
    ) -> BroughtBranch:
        """The claim's branch, or one that is drawn from a secret."""
        if isinstance(claim, BroughtBranch):
            return copy.deepcopy(claim).requires_grad_(True)
        return BroughtBranch.drawn(model, passport, False, example_inputs)


class _DeepIPRProtection(Protection):
    def __init__(
        self, scheme: DeepIPR, model: nn.Module, passport: Passport, example_inputs: Any
    ) -> None:
        self.scheme, self.model, self.passport = scheme, model, passport
        branch = BroughtBranch.drawn(model, passport, False, example_inputs)
        self.branch = branch.requires_grad_(False)
        self.statistics = None
        if scheme.own_statistics:
            self.statistics = fresh_statistics(model, [site.name for site in branch.sites])

    def loss(self, inputs: Any, targets: Any, criterion: Callable[[Any, Any], Tensor]) -> Tensor:
        """Both branches on the whole batch, and the sign loss."""
        public = criterion(call_model(self.model, inputs), targets)
        factors = self.branch.factors(self.model)
        private = criterion(private_call(self.model, inputs, factors, self.statistics), targets)
        sign = self.branch.sign_loss(self.model, self.scheme.margin)
        return public + private + self.scheme.sign_weight * sign

    def release(self) -> Release:
        return Release(self.scheme, self.model.eval(), self.passport, self.branch.kept())


@torch.no_grad()
def released_factors(model: nn.Module, branch: BroughtBranch) -> Factors:
    """What the norms of a released model multiply with and add."""
    found = {}
    for site in branch.sites:
        scale, shift = factor_names(model, site.name)
        first = model.get_parameter(scale).detach().clone()
        second = model.get_parameter(shift).detach().clone() if shift else torch.zeros_like(first)
        found[site.name] = (first, second)
    return found
