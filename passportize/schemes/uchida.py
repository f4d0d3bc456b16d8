"""Bits in the mean kernel of one layer by a regulariser: the first white-box watermark.

The weights of one layer, averaged over its outputs, are ``w`` with ``M`` entries. With a secret
matrix ``X``, ``[T, M]``, of normal numbers the bits are ``X w > 0``, and training adds the binary
cross entropy between ``sigmoid(X w)`` and the bits. There is no private branch. The claimant
brings layer, matrix and bits, so anybody can claim any model: rows of ``X`` are turned over where
they do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.errors import DegenerateSite
from passportize.layers.computed import effective_weight
from passportize.passport.passport import Passport
from passportize.schemes.brought import Factors
from passportize.schemes.registry import register_scheme
from passportize.schemes.scheme import Finding, Protection, Release, Scheme
from passportize.signature.null_model import log2_binomial_tail
from passportize.thresholds import ACCEPT_STRENGTH
from passportize.tracing.weight_layers import is_weight_module
from passportize.utils.trees import call_model

__all__ = ["Uchida", "UchidaClaim"]


@dataclass(frozen=True, eq=False, repr=False)
class UchidaClaim:
    """What a claimant brings.

    Attributes:
        layer: Name of a convolution or linear layer.
        matrix: ``X``, ``[bits, entries]``.
        bits: 0 and 1, ``[bits]``.
    """

    layer: str
    matrix: Tensor
    bits: Tensor

    def projections(self, model: nn.Module) -> Tensor | None:
        """``X w`` of a model, ``[bits]``; None where it has no such layer."""
        try:
            weight = effective_weight(model.get_submodule(self.layer), "weight")
        except AttributeError:
            return None
        mean = weight.flatten(1).mean(0)
        if len(mean) != self.matrix.shape[1]:
            return None
        return self.matrix.to(mean.device, mean.dtype) @ mean


@register_scheme
class Uchida(Scheme):
    """Secret projection of the mean weights of one layer.

    Args:
        bits: Length of the signature; at most half as many as the layer has mean weights are put
            in.
        weight: Of the regulariser.
        layer: Name of the layer; by default the one with most mean weights, the first of them.
    """

    name = "uchida"
    source = "Uchida et al., Embedding Watermarks into Deep Neural Networks, ICMR 2017"

    def __init__(self, bits: int = 256, weight: float = 0.01, layer: str | None = None) -> None:
        self.bits, self.weight, self.layer = bits, weight, layer

    def protect(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Protection:
        """Nothing of the model changes; the regulariser does it in training."""
        return _UchidaProtection(self, model, passport, self.drawn(model, passport))

    def drawn(self, model: nn.Module, passport: Passport) -> UchidaClaim:
        """Layer, matrix and bits from a secret.

        Raises:
            DegenerateSite: The model has no layer with 128 mean weights or more.
        """
        sizes = {
            name: effective_weight(module, "weight")[0].numel()
            for name, module in model.named_modules()
            if is_weight_module(module) and self.layer in (None, name)
        }
        layer = max(sizes, key=lambda name: sizes[name], default="")
        bits = min(self.bits, sizes.get(layer, 0) // 2)
        if bits < ACCEPT_STRENGTH:
            raise DegenerateSite(
                f"uchida: {layer or 'the model'} has {sizes.get(layer, 0)} mean weights; give a "
                f"layer with at least {2 * ACCEPT_STRENGTH:.0f}"
            )
        seed = int.from_bytes(passport.stream("bench/uchida", 8), "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(bits, sizes[layer], generator=generator)
        return UchidaClaim(layer, matrix, torch.randint(0, 2, (bits,), generator=generator))

    def verify(
        self,
        suspect: nn.Module,
        passport: Passport,
        claim: Any,
        loader: Iterable[Any] | None = None,
        released: nn.Module | None = None,
    ) -> Finding:
        """The share of bits that match, as a binomial."""
        with torch.no_grad():
            found = claim.projections(suspect)
        if found is None:
            reason = f"the suspect has no weights in the place of {claim.layer}"
            return Finding(False, 0, 0, 0.0, reason=reason)
        matched, total = int(((found > 0).cpu() == (claim.bits > 0)).sum()), len(claim.bits)
        strength = max(0.0, -log2_binomial_tail(matched, total))
        reason = f"{matched} of {total} bits match"
        return Finding(strength >= ACCEPT_STRENGTH, matched, total, strength, reason=reason)

    def forge(
        self,
        model: nn.Module,
        passport: Passport,
        factors: Factors | None = None,
        example_inputs: Any = None,
    ) -> UchidaClaim:
        """A matrix of one's own, its rows turned over where their bit does not fit."""
        claim = self.drawn(model, passport)
        with torch.no_grad():
            found = claim.projections(model)
        assert found is not None
        fits = (found > 0).cpu() == (claim.bits > 0)
        matrix = torch.where(fits[:, None], claim.matrix, -claim.matrix)
        return UchidaClaim(claim.layer, matrix, claim.bits)


class _UchidaProtection(Protection):
    def __init__(
        self, scheme: Uchida, model: nn.Module, passport: Passport, claim: UchidaClaim
    ) -> None:
        self.scheme, self.model, self.passport, self.claim = scheme, model, passport, claim

    def loss(self, inputs: Any, targets: Any, criterion: Callable[[Any, Any], Tensor]) -> Tensor:
        """The task's loss, and the regulariser."""
        found = self.claim.projections(self.model)
        assert found is not None
        bits = self.claim.bits.to(found.device, found.dtype)
        mark = functional.binary_cross_entropy_with_logits(found, bits, reduction="sum")
        return criterion(call_model(self.model, inputs), targets) + self.scheme.weight * mark

    def release(self) -> Release:
        return Release(self.scheme, self.model.eval(), self.passport, self.claim)
