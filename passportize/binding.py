"""From a site and a passport to a private branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from passportize.config import PassportConfig
from passportize.errors import AnchorNotFound, InvalidArgument
from passportize.model_key import ModelKey
from passportize.private_branch import AnchorWeights, Branch
from passportize.selection import select
from passportize.site import AnchorPart, Role, Site
from passportize.switch import Switch

__all__ = ["anchor_shapes", "anchor_weights", "make_branches", "site_configs"]


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


def anchor_shapes(model: nn.Module, sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that some sites are bound to, by name.

    Raises:
        AnchorNotFound: The model has no such weight.
    """
    return {
        part.weight: tuple(getattr(owner, attribute).shape)
        for site in sites
        if site.anchor is not None
        for owner, attribute, part in anchor_weights(model, site.anchor.parts).owners
    }


def make_branches(
    model: nn.Module,
    sites: Sequence[Site],
    key: ModelKey,
    configs: Sequence[PassportConfig],
    switch: Switch,
) -> list[Branch]:
    """A private branch for every site; the model is only read.

    Args:
        model: The model.
        sites: Sites with names of modules and weights of ``model``; its bound ones are those of
            the key's layout in the same order, by whatever name they have there.
        key: Source of vectors and bits.
        configs: The formulation of each site.
        switch: The state that the branches will share.

    Raises:
        AnchorNotFound: The model lacks the weight of an anchor.
    """
    secrets = iter(key.secrets())
    branches = []
    for site, config in zip(sites, configs, strict=True):
        host = model.get_submodule(site.name)
        if site.role is not Role.BOUND or site.anchor is None:
            branches.append(Branch(site, config, switch, host))
            continue
        generator = None
        if config.formulation == "paper":
            seed = int.from_bytes(key.stream(f"bottleneck/{site.name}", 8), "big") >> 1
            generator = torch.Generator(device="cpu").manual_seed(seed)
        weights = anchor_weights(model, site.anchor.parts)
        branches.append(Branch(site, config, switch, host, weights, next(secrets), generator))
    return branches
