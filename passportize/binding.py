"""From a site and a passport to a private branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passportize.anchors import anchor_fan_in
from passportize.config import PassportConfig
from passportize.errors import AnchorNotFound, InvalidArgument
from passportize.passport import Passport
from passportize.private_branch import AnchorWeights, Branch
from passportize.secret_vectors import SecretVectors
from passportize.selection import select
from passportize.site import AnchorPart, Site
from passportize.switch import Switch

__all__ = ["anchor_weights", "make_branches", "secret_vectors", "site_configs"]


def anchor_weights(model: nn.Module, parts: Sequence[AnchorPart]) -> AnchorWeights:
    """Live access to the weights of an anchor.

    Raises:
        AnchorNotFound: The model has no such weight.
    """
    owners = []
    for part in parts:
        path, _, attribute = part.weight.rpartition(".")
        try:
            owner = model.get_submodule(path)
            getattr(owner, attribute)
        except AttributeError:
            raise AnchorNotFound(
                f"{type(model).__name__} has no weight named {part.weight!r}"
            ) from None
        owners.append((owner, attribute, part))
    return AnchorWeights(owners)


def site_configs(
    sites: Sequence[Site],
    config: PassportConfig,
    overrides: Mapping[str, PassportConfig | Mapping[str, Any]] | None,
) -> list[PassportConfig]:
    """The formulation of every site: the model-wide one, or the last override that matches.

    Args:
        sites: The sites in order.
        config: The model-wide config.
        overrides: Glob pattern on dotted names to a config, or to the settings that differ.

    Raises:
        UnknownSite: A pattern matches no site.
        InvalidArgument: An override makes no sense.
    """
    configs = [config] * len(sites)
    for pattern, override in (overrides or {}).items():
        if isinstance(override, PassportConfig):
            changed = override
        elif isinstance(override, Mapping):
            changed = PassportConfig.from_dict({**config.to_dict(), **override})
        else:
            raise InvalidArgument(
                f"overrides[{pattern!r}] must be a PassportConfig or a dict of settings, not "
                f"{type(override).__name__}"
            )
        if changed.has_private_pass and not config.has_private_pass:
            raise InvalidArgument(
                f"overrides[{pattern!r}] asks for {changed.formulation!r}, but the model-wide "
                "preset is 'signature', which runs no private branch"
            )
        hits = select([(site.name, *site.aliases) for site in sites], pattern, "overrides")
        configs = [changed if hit else old for hit, old in zip(hits, configs, strict=True)]
    return configs


def secret_vectors(
    model: nn.Module, site: Site, passport: Passport, config: PassportConfig, bits: Tensor
) -> SecretVectors:
    """Passport vectors of one site.

    Args:
        model: The model, for shapes.
        site: A bound site.
        passport: Where the vectors come from.
        config: ``paper`` draws its vectors uniformly from (-1, 1), the others are signs.
        bits: The site's signature bits as 0 and 1, ``[channels]``.
    """
    assert site.anchor is not None
    sides: dict[str, list[Tensor]] = {"gamma": [], "beta": []}
    for index, part in enumerate(site.anchor.parts):
        length = anchor_fan_in(tuple(model.get_parameter(part.weight).shape), part)
        for side, vectors in sides.items():
            if config.formulation == "paper":
                vectors.append(passport.uniform(site.name, side, index, (length,)))
            else:
                vectors.append(passport.vector(site.name, side, index, length))
    signs = bits.to(torch.float32) * 2 - 1
    return SecretVectors(tuple(sides["gamma"]), tuple(sides["beta"]), signs)


def make_branches(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    configs: Sequence[PassportConfig],
    switch: Switch,
) -> list[Branch]:
    """A private branch for every site; the model is only read.

    The bits are laid over the bound sites in the order given.
    """
    total = sum(site.bits for site in sites)
    signature = passport.bits(total) if total else torch.zeros(0, dtype=torch.int8)
    branches = []
    position = 0
    for site, config in zip(sites, configs, strict=True):
        host = model.get_submodule(site.name)
        if site.anchor is None or not site.bits:
            branches.append(Branch(site, config, switch, host))
            continue
        bits = signature[position : position + site.bits]
        position += site.bits
        generator = None
        if config.formulation == "paper":
            seed = int.from_bytes(passport.stream(f"bottleneck/{site.name}", 8), "big") >> 1
            generator = torch.Generator().manual_seed(seed)
        branches.append(
            Branch(
                site,
                config,
                switch,
                host,
                anchor_weights(model, site.anchor.parts),
                secret_vectors(model, site, passport, config, bits),
                generator,
            )
        )
    return branches
