"""The claim: what the owner keeps of a protected model, and commits to before release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import ClaimError, InvalidArgument
from passportize.layers.integrity import check_anchors, check_layers
from passportize.layers.layer import PassportLayer
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.wrappers import refuse_wrapped
from passportize.passport.derivation import encode_label
from passportize.release.checkpoint import host_state_dict
from passportize.release.preprocessing import Preprocessing
from passportize.release.weights_digest import feed_tensor, weights_digest
from passportize.signature.layout import Layout
from passportize.signature.marking import Marking
from passportize.signature.site import Site
from passportize.utils.foreign import architecture_of

__all__ = ["VERSION", "Claim", "claim_of"]

VERSION = 1
_DOMAIN = "passportize/claim/v1"


@dataclass(frozen=True, eq=False)
class Claim:
    """All that is needed beside the passport to verify a suspect. Holds no secret.

    Publish or timestamp :meth:`digest` before the weights are released: it binds the released
    weights, the passport, and where the bits lie.

    Attributes:
        model: Class name of the model.
        architecture: timm's name of it, empty if there is none.
        marking: What was marked: sites, their settings, the shapes of their weights.
        commitment: Commitment of the passport, see :meth:`passportize.Passport.commitment`.
        weights: SHA-256 of the released weights.
        tensors: Bottlenecks of ``paper``: ``"<index of the site>.<what>"``; else empty.
        preprocessing: How the owner prepared pictures, in their word; None where nothing was said.
    """

    model: str
    architecture: str
    marking: Marking
    commitment: str
    weights: str
    tensors: Mapping[str, Tensor]
    preprocessing: Preprocessing | None = None

    @property
    def config(self) -> PassportConfig:
        """The model-wide settings."""
        return self.marking.config

    @property
    def sites(self) -> tuple[Site, ...]:
        """Bound sites and those with private statistics, in registration order."""
        return self.marking.sites

    @property
    def layout(self) -> Layout:
        """Where the signature bits lie."""
        return self.marking.layout

    @property
    def bits(self) -> int:
        """Number of signature bits."""
        return self.marking.bits

    def header(self) -> str:
        """Everything but the tensors, as canonical JSON."""
        record: dict[str, Any] = {
            **self.marking.to_dict(),
            "model": self.model,
            "architecture": self.architecture,
            "commitment": self.commitment,
            "weights": self.weights,
        }
        if self.preprocessing is not None:
            record["preprocessing"] = self.preprocessing.to_dict()
        return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """SHA-256 over the header and all tensors, as hex: what to publish before release."""
        digest = hashlib.sha256(encode_label(_DOMAIN, VERSION, self.header()))
        for name in sorted(self.tensors):
            feed_tensor(digest, name, self.tensors[name])
        return digest.hexdigest()

    def of_site(self, index: int) -> dict[str, Tensor]:
        """The tensors of one site, by what they are."""
        prefix = f"{index}."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def __str__(self) -> str:
        name = self.architecture or self.model
        return f"Claim on {name}: {len(self.sites)} sites, {self.bits} bits, sha256 {self.digest()}"

    def __repr__(self) -> str:
        return f"<{self}>"


def claim_of(model: nn.Module, preprocessing: Preprocessing | None = None) -> Claim:
    """The claim on a passportized model as it is now; nothing is written.

    Args:
        model: A passportized model, trained.
        preprocessing: How pictures are prepared for it, to be recorded.

    Raises:
        NotPassportized: The model carries no private branch.
        WrappedModel: It is inside DDP, torch.compile or the like.
        BranchLost: Layers were replaced, copied or patched after surgery, or bits cannot be read
            from their weights as they are kept.
        ClaimError: The private statistics are not finite.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"expected a passportized model, got {type(model).__name__}")
    refuse_wrapped(model)
    switch = switch_of(model)
    check_layers(model, switch)
    layout = switch.layout
    assert layout is not None
    check_anchors(model, layout)
    layers = passport_layers(model)
    branches = [layer.passport for layer in layers.values()]
    for layer in layers.values():
        _check_finite(layer)
    return Claim(
        model=type(model).__name__,
        architecture=architecture_of(model),
        marking=Marking(
            switch.config,
            tuple(branch.site for branch in branches),
            tuple(branch.config for branch in branches),
            layout.weights,
        ),
        commitment=switch.commitment,
        weights=weights_digest(host_state_dict(model)),
        tensors={
            f"{index}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for index, branch in enumerate(branches)
            for name, tensor in branch.named_parameters()
        },
        preprocessing=preprocessing,
    )


def _check_finite(layer: PassportLayer) -> None:
    branch = layer.passport
    for statistic in (branch.running_mean, branch.running_var):
        if statistic is not None and not bool(torch.isfinite(statistic).all()):
            raise ClaimError(
                f"{branch.site.name}: the private running statistics are not finite numbers, so "
                "the private branch computes nothing; train with a smaller learning rate"
            )
