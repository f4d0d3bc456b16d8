"""The schemes of this library as the bench sees them: ``keyed`` and ``signature``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.layers.model import passport_layers
from passportize.passport.passport import Passport
from passportize.release.claim import claim_of
from passportize.schemes.brought import Factors
from passportize.schemes.registry import register_scheme
from passportize.schemes.scheme import Finding, Protection, Release, Scheme
from passportize.surgery.branches import take_out_branches
from passportize.surgery.surgery import passportize
from passportize.training.embedding import TrainedWeightsWarning, embed_signature
from passportize.training.input_moments import inputs_of
from passportize.training.loss import joint_loss
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__all__ = ["Keyed", "OwnProtection", "OwnScheme", "Signature", "finding_of"]


class OwnProtection(Protection):
    """A passportized model in training.

    Args:
        scheme: What the release will name.
        model: A passportized model.
        passport: The owner's.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, passport: Passport) -> None:
        self.scheme, self.model, self.passport = scheme, model, passport

    def loss(self, inputs: Any, targets: Any, criterion: Callable[[Any, Any], Tensor]) -> Tensor:
        """See :func:`passportize.joint_loss`."""
        return joint_loss(self.model, inputs, targets, criterion).total

    def release(self) -> Release:
        """Claim, then surgery undone; see :func:`passportize.unpassportize`."""
        claim = claim_of(self.model)
        take_out_branches(self.model)
        return Release(self.scheme, self.model.eval(), self.passport, claim)


class OwnScheme(Scheme):
    """A preset of :class:`passportize.PassportConfig` as a scheme.

    Args:
        **changes: Other settings of the preset.
    """

    preset: ClassVar[str]
    embedded: ClassVar[bool] = True
    """Whether all bits are put in before training."""

    def __init__(self, **changes: Any) -> None:
        self.config = PassportConfig.preset(self.preset, **changes)

    def protect(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Protection:
        """See :func:`passportize.passportize` and :func:`passportize.embed_signature`."""
        passportize(model, passport, config=self.config, example_inputs=example_inputs)
        if self.embedded:
            with warnings.catch_warnings():
                # Training follows, also of weights that are trained already.
                warnings.simplefilter("ignore", TrainedWeightsWarning)
                embed_signature(model)
        return OwnProtection(self, model, passport)

    def verify(
        self,
        suspect: nn.Module,
        passport: Passport,
        claim: Any,
        loader: Iterable[Any] | None = None,
        released: nn.Module | None = None,
    ) -> Finding:
        """See :func:`passportize.verify`: the signature decides, disguises are undone."""
        example = None
        if released is not None and loader is not None:
            example = next((inputs_of(batch) for batch in loader), None)
        verdict = verify(
            suspect, passport, claim, loader, released=released, example_inputs=example
        )
        return finding_of(verdict)

    def forge(
        self,
        model: nn.Module,
        passport: Passport,
        factors: Factors | None = None,
        example_inputs: Any = None,
    ) -> Any:
        """The claim that follows from the passport: there is nothing to choose but the passport."""
        return claim_of(self._passportized(model, passport, example_inputs))

    def private_factors(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Factors | None:
        """Of the norms that have a branch with a scale and a shift."""
        if not self.config.has_private_pass:
            return None
        found = {}
        layers = passport_layers(self._passportized(model, passport, example_inputs))
        for name, layer in layers.items():
            if layer.passport.transforms:
                scale, shift, _ = layer.private_factors()
                if scale is not None:
                    empty = torch.zeros_like(scale)
                    found[name] = (scale.detach(), empty if shift is None else shift.detach())
        return found

    def _passportized(self, model: nn.Module, passport: Passport, example_inputs: Any) -> nn.Module:
        copied = copy.deepcopy(model).eval()
        return passportize(copied, passport, config=self.config, example_inputs=example_inputs)


def finding_of(verdict: Verdict) -> Finding:
    """A verdict in the words of the bench; where a disguise was undone, the bits read after it."""
    matched, total, strength = verdict.matched, verdict.total, verdict.strength
    links = verdict.links
    if links is not None and links.aligned_strength > strength:
        matched, total = links.aligned_matched, links.aligned_total
        strength = links.aligned_strength
    return Finding(
        accepted=verdict.accepted,
        matched=matched,
        total=total,
        strength=strength,
        public_accuracy=verdict.public_accuracy,
        private_accuracy=verdict.private_accuracy,
        reason=verdict.reason,
    )


@register_scheme
class Keyed(OwnScheme):
    """Both branches, nothing in the private one is free."""

    name = "keyed"
    preset = "keyed"
    source = "this library"


@register_scheme
class Signature(OwnScheme):
    """Bits only."""

    name = "signature"
    preset = "signature"
    source = "this library"
