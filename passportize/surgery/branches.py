"""Private branches put into a model at known sites, and taken out again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
from torch import nn

from passportize.config import PassportConfig
from passportize.errors import AnchorNotFound, SurgeryError
from passportize.layers.computed import effective_weight
from passportize.layers.derived import class_before
from passportize.layers.joint_forward import RootHooks
from passportize.layers.layer import PassportLayer
from passportize.layers.model import passport_layers
from passportize.layers.private_branch import AnchorWeights, Branch
from passportize.layers.pyg_single_row import put_in_single_elements, take_out_single_elements
from passportize.layers.switch import StepCounter, Switch
from passportize.layers.unregistered_norm import adapter_of
from passportize.layers.weight_owner import OWN_RULE, weight_owner_class
from passportize.passport.passport import Passport
from passportize.signature.layout import Layout
from passportize.signature.model_key import ModelKey
from passportize.signature.site import AnchorPart, Role, Site
from passportize.surgery.stand_ins import take_out_stand_ins

__all__ = [
    "anchor_shapes",
    "anchor_weights",
    "put_in_branches",
    "branches_put_in",
    "count_steps",
    "take_out_branches",
    "make_branches",
    "put_in_branch",
    "take_out_branch",
]


def put_in_branches(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    config: PassportConfig,
    configs: Sequence[PassportConfig] | None = None,
    layout: Layout | None = None,
    entry: str = "",
) -> Switch:
    """Put private branches at known sites; on any error the model is as before.

    Args:
        model: A plain model.
        sites: Sites to change, with names of modules in ``model``.
        passport: The owner's passport.
        config: The model-wide formulation.
        configs: The formulation of each site, the model-wide one by default.
        layout: The layout that the bits were embedded with, where the model's names differ from
            it; made from ``sites`` by default.
        entry: Name of the module at whose input the batch is doubled in training; the root if
            empty.
    """
    switch = Switch(config)
    switch.entry = entry
    each = list(configs) if configs is not None else [config] * len(sites)
    switch.layout = layout or Layout.of(sites, each, anchor_shapes(model, sites))
    switch.commitment = passport.commitment()
    branches = make_branches(model, sites, ModelKey(passport, switch.layout), each, switch)
    undo: list[Callable[[], None]] = []
    try:
        for site, branch in zip(sites, branches, strict=True):
            norm = model.get_submodule(site.name)
            undo.append(partial(take_out_branch, norm))
            put_in_branch(norm, branch)
        switch.sites = tuple(site.name for site in sites)
        count_steps(model, switch)
        switch.batch_statistics = any(branch.running_mean is not None for branch in branches)
        undo.append(partial(take_out_single_elements, model))
        put_in_single_elements(model)
        undo.append(partial(RootHooks.take_out, model))
        RootHooks(switch).put_in(model)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    return switch


def count_steps(model: nn.Module, switch: Switch) -> None:
    """Let state dicts hold the number of joint steps, where not all of them are alike.

    Args:
        model: The passportized model.
        switch: Its switch.
    """
    first = next(iter(passport_layers(model).values()), None)
    if switch.counts and first is not None and "counter" not in first.passport._modules:
        first.passport.add_module("counter", StepCounter(switch))


def take_out_branches(model: nn.Module) -> None:
    """Take all private branches out, without a warning."""
    for layer in passport_layers(model).values():
        take_out_branch(layer)
    take_out_single_elements(model)
    take_out_stand_ins(model)
    RootHooks.take_out(model)


@contextmanager
def branches_put_in(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    config: PassportConfig,
    configs: Sequence[PassportConfig] | None = None,
    layout: Layout | None = None,
) -> Iterator[Switch]:
    """Private branches for the length of a ``with`` block; the model is left as it was."""
    switch = put_in_branches(model, sites, passport, config, configs, layout)
    try:
        yield switch
    finally:
        take_out_branches(model)


# --- one live norm and its two-branch layer: a change of class and a submodule, there and back ---


def put_in_branch(norm: nn.Module, branch: Branch) -> None:
    """Make one live norm a two-branch layer.

    Raises:
        SurgeryError: It has no adapter, or an attribute called ``passport``.
    """
    anchor = branch.site.anchor
    adapter: type[PassportLayer] | None
    if anchor is not None and anchor.rule == OWN_RULE:
        adapter = weight_owner_class(type(norm))
    else:
        adapter = adapter_of(norm)
    if adapter is None:
        raise SurgeryError(f"{branch.site.name}: {type(norm).__name__} has no adapter")
    if hasattr(norm, "passport"):
        raise SurgeryError(
            f"{branch.site.name}: the norm already has an attribute called 'passport'; rename it "
            "or leave the norm out with where="
        )
    norm.__class__ = adapter
    norm._modules["passport"] = branch
    if adapter.scale_name and "forward" in vars(norm):
        vars(norm)["forward"] = MethodType(adapter.forward, norm)


def take_out_branch(layer: nn.Module) -> None:
    """Make a two-branch layer the norm that it was; any other module stays as it is."""
    kind = type(layer)
    if issubclass(kind, PassportLayer):
        branch = layer._modules.get("passport")
        if kind.scale_name and isinstance(branch, Branch):
            branch.own_methods.put_back(layer)
        layer.__class__ = class_before(kind)
        layer._modules.pop("passport", None)


# --- from a site and a passport to a private branch -------------------------------------------


def anchor_weights(model: nn.Module, parts: Sequence[AnchorPart]) -> AnchorWeights:
    """Live access to the weights of an anchor.

    Raises:
        AnchorNotFound: The model has no such weight.
    """
    owners = []
    for part in parts:
        path, _, attribute = part.weight.rpartition(".")
        owner = model
        try:
            # Not get_submodule: a DenseNet has two thousand parts, and it looks twice at each step.
            for name in path.split(".") if path else ():
                owner = owner._modules[name]  # type: ignore[assignment]
            effective_weight(owner, attribute)
        except (AttributeError, KeyError):
            raise AnchorNotFound(
                f"{type(model).__name__} has no weight named {part.weight!r}"
            ) from None
        owners.append((owner, attribute, part))
    return AnchorWeights(owners)


def anchor_shapes(model: nn.Module, sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that some sites are bound to, by name.

    Raises:
        AnchorNotFound: The model has no such weight.
    """
    return {
        part.weight: tuple(effective_weight(owner, attribute).shape)
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
        if config.has_bottleneck:
            seed = int.from_bytes(key.stream(f"bottleneck/{site.name}", 8), "big") >> 1
            generator = torch.Generator(device="cpu").manual_seed(seed)
        weights = anchor_weights(model, site.anchor.parts)
        branches.append(Branch(site, config, switch, host, weights, next(secrets), generator))
    return branches
