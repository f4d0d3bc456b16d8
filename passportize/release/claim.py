"""The claim: what the owner keeps of a protected model, and commits to before release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import BranchLost, InvalidArgument
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.statistics import relative_statistics
from passportize.layers.wrappers import refuse_wrapped
from passportize.passport.derivation import encode_label
from passportize.release.checkpoint import host_state_dict
from passportize.release.weights_digest import feed_tensor, weights_digest
from passportize.signature.layout import Layout
from passportize.signature.matching import structure_of
from passportize.signature.site import Site

__all__ = ["VERSION", "Claim", "claim_of"]

VERSION = 1
_DOMAIN = "passportize/claim/v1"


@dataclass(frozen=True, eq=False)
class Claim:
    """All that is needed beside the passport to verify a suspect. Holds no secret.

    Publish or timestamp :meth:`digest` before the weights are released: it binds the private
    branch, and with it the accuracy that :func:`passportize.verify` measures.

    Attributes:
        model: Class name of the model.
        architecture: timm's name of it, empty if there is none.
        config: The model-wide formulation.
        sites: Bound sites and those with private statistics, in registration order.
        configs: The formulation of every site.
        anchors: Shapes of the weights that the sites are bound to, by name.
        commitment: Commitment of the passport, see :meth:`passportize.Passport.commitment`.
        weights: SHA-256 of the released weights.
        structure: Names and shapes of the released tensors, in their order.
        tensors: Private statistics and bottlenecks: ``"<index of the site>.<what>"``.
    """

    model: str
    architecture: str
    config: PassportConfig
    sites: tuple[Site, ...]
    configs: tuple[PassportConfig, ...]
    anchors: Mapping[str, tuple[int, ...]]
    commitment: str
    weights: str
    structure: tuple[tuple[str, tuple[int, ...]], ...]
    tensors: Mapping[str, Tensor]

    @property
    def layout(self) -> Layout:
        """Where the signature bits lie."""
        return Layout.of(self.sites, self.configs, self.anchors)

    @property
    def bits(self) -> int:
        """Number of signature bits."""
        return sum(site.bits for site in self.sites)

    def header(self) -> str:
        """Everything but the tensors, as canonical JSON."""
        record: dict[str, Any] = {
            "model": self.model,
            "architecture": self.architecture,
            "config": self.config.to_dict(),
            "sites": [
                {
                    **site.to_dict(),
                    "config": None if config == self.config else config.to_dict(),
                }
                for site, config in zip(self.sites, self.configs, strict=True)
            ],
            "anchors": {name: list(shape) for name, shape in self.anchors.items()},
            "commitment": self.commitment,
            "weights": self.weights,
            "structure": [[name, list(shape)] for name, shape in self.structure],
        }
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


def claim_of(model: nn.Module) -> Claim:
    """The claim on a passportized model as it is now; nothing is written.

    Raises:
        NotPassportized: The model carries no private branch.
        WrappedModel: It is inside DDP, torch.compile or the like.
        BranchLost: Layers were replaced after surgery.
        ClaimError: The private statistics are not finite.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"expected a passportized model, got {type(model).__name__}")
    refuse_wrapped(model)
    switch = switch_of(model)
    layers = passport_layers(model)
    branches = [layer.passport for layer in layers.values()]
    layout = switch.layout
    bound = tuple(branch.site.name for branch in branches if branch.bound)
    if layout is None or bound != tuple(site.name for site in layout.sites):
        raise BranchLost(
            f"{type(model).__name__}: its two-branch layers are no longer those that passportize "
            "made; a later conversion replaced some. Convert first and passportize then"
        )
    tensors: dict[str, Tensor] = {}
    for index, (layer, branch) in enumerate(zip(layers.values(), branches, strict=True)):
        parts: dict[str, Tensor] = {}
        if switch.config.has_private_pass:
            scale = getattr(layer, layer.scale_name, None)
            parts = relative_statistics(layer, branch, scale)
        for name, tensor in branch.named_parameters():
            parts[name] = tensor.detach().to("cpu", copy=True).contiguous()
        tensors.update({f"{index}.{name}": tensor for name, tensor in parts.items()})
    host = host_state_dict(model)
    return Claim(
        model=type(model).__name__,
        architecture=_architecture(model),
        config=switch.config,
        sites=tuple(branch.site for branch in branches),
        configs=tuple(branch.config for branch in branches),
        anchors={
            part.weight: shape
            for site, shapes in zip(layout.sites, layout.shapes, strict=True)
            if site.anchor is not None
            for part, shape in zip(site.anchor.parts, shapes, strict=True)
        },
        commitment=switch.commitment,
        weights=weights_digest(host),
        structure=structure_of(host),
        tensors=tensors,
    )


def _architecture(model: nn.Module) -> str:
    for attribute in ("pretrained_cfg", "default_cfg"):
        settings = getattr(model, attribute, None)
        if isinstance(settings, Mapping):
            name = settings.get("architecture")
        else:
            name = getattr(settings, "architecture", None)
        if isinstance(name, str) and name:
            return name
    return ""
