"""Putting private branches into a live model, and taking them out again without a trace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from passportize.binding import anchor_shapes, make_branches, site_configs
from passportize.config import PassportConfig
from passportize.errors import (
    AlreadyPassportized,
    DegenerateSite,
    InvalidArgument,
    NotPassportized,
    SurgeryError,
    WrappedModel,
    WrongPassport,
)
from passportize.forward import RootHooks, is_passportized, passport_layers, switch_of
from passportize.functional_norms import hide, stand_ins
from passportize.late_doubling import find_late_entry
from passportize.layer import PassportLayer
from passportize.layout import Layout
from passportize.model_key import ModelKey
from passportize.norms import find_norms
from passportize.packed import packed_inputs, packed_module
from passportize.passport import Passport
from passportize.planning import Plan, plan
from passportize.private_branch import Branch
from passportize.selection import Where
from passportize.single_element import hand_over_single_elements, take_back_single_elements
from passportize.site import Role, Site
from passportize.structural_adapter import adapter_of
from passportize.switch import Switch
from passportize.weight_owner import OWN_RULE, weight_owner_class

__all__ = [
    "UnsavedBranchWarning",
    "attach",
    "attached",
    "detach",
    "install",
    "passportize",
    "refuse_wrapped",
    "unlock",
    "unpassportize",
]

Model = TypeVar("Model", bound=nn.Module)

_logger = logging.getLogger(__name__)

_WRAPPERS = {
    "DistributedDataParallel": "wrap it in DDP afterwards",
    "DataParallel": "wrap it in DataParallel afterwards (DDP is better)",
    "FullyShardedDataParallel": "shard it afterwards",
    "FSDPModule": "call fully_shard afterwards",
    "OptimizedModule": "call torch.compile afterwards",
    "ScriptModule": "TorchScript cannot be changed; start from the Python model",
    "RecursiveScriptModule": "TorchScript cannot be changed; start from the Python model",
}


class UnsavedBranchWarning(UserWarning):
    """A trained private branch is about to be thrown away without a claim having been saved."""


def passportize(
    model: Model,
    passport: Passport,
    *,
    config: PassportConfig | None = None,
    where: Where | None = None,
    overrides: Mapping[str, PassportConfig | Mapping[str, Any]] | None = None,
    example_inputs: Any = None,
    anchors: Mapping[str, str] | None = None,
    include_frozen: bool = False,
) -> Model:
    """Give every normalization layer a private branch, in place; returns the same object.

    Nothing of the model changes but the class of its norms and one submodule, ``passport``, in
    each: parameters, names, hooks and flags stay, and :func:`unpassportize` restores the rest.
    Use ``copy.deepcopy`` first to keep an untouched model beside it.

    Args:
        model: Any model, plain (wrap and compile afterwards).
        passport: The owner's passport.
        config: A preset: ``PassportConfig.keyed()`` (default), ``.paper()`` or ``.signature()``.
        where: Which norms to bind: a glob pattern on dotted names (``"layer4*"``), several, or a
            predicate.
        overrides: Other settings for some sites: glob pattern to a config or a dict of settings.
        example_inputs: A tensor, a tuple of arguments, a dict of keyword arguments, or a function
            that runs the model; timm models need none.
        anchors: ``{"norm name": "weight name"}`` where the weight found is not the right one.
        include_frozen: Bind norms whose anchor does not train, too.

    Raises:
        SurgeryError: The model cannot be passportized (one subclass for each reason). It is then
            exactly as before.
        InvalidArgument: An argument makes no sense.
    """
    _check_model(model, "passportize")
    if not isinstance(passport, Passport):
        raise InvalidArgument(
            f"passportize: expected a Passport, got {type(passport).__name__}; make one with "
            "Passport.generate(owner=...)"
        )
    refuse_wrapped(model)
    if is_passportized(model):
        raise AlreadyPassportized(
            f"{type(model).__name__} already carries private branches (first: "
            f"{next(iter(passport_layers(model)))}); call unpassportize(model) first"
        )
    config = config or PassportConfig.keyed()
    with stand_ins(model, {norm.name for norm in find_norms(model)}, example_inputs):
        planned = plan(
            model,
            config=config,
            where=where,
            example_inputs=example_inputs,
            anchors=anchors,
            include_frozen=include_frozen,
        )
        config = _with_fitting_passes(model, config, example_inputs)
        sites = [site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS)]
        if not planned.bits:
            raise DegenerateSite(_nothing_bound(planned))
        late = None
        if where is not None and config.has_private_pass and config.passes == "doubled":
            late = find_late_entry(model, sites, example_inputs)
        if late is not None:
            sites = [site for site in sites if site.name not in late.trunk]
            _logger.info("the batch is doubled at %s; what is before it runs once", late.name)
        configs = site_configs(sites, config, overrides)
        entry = late.name if late is not None else ""
        switch = attach(model, sites, passport, config, configs, entry=entry)
        switch.rows_apart = example_inputs is not None
        switch.samples_only = any(site.name in planned.samples_only for site in sites)
    for site in planned.sites:
        if site.role in (Role.SKIPPED, Role.UNREACHED) and site.reason != "left out by where=":
            _logger.info("%s (%s): %s: %s", site.name, site.norm_type, site.role.value, site.reason)
    return model


def attach(
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
    install(model, sites, branches, switch)
    return switch


def install(
    model: nn.Module, sites: Sequence[Site], branches: Sequence[Branch], switch: Switch
) -> None:
    """Swap in finished branches and register the root hooks; undone on any error."""
    swapped: list[nn.Module] = []
    try:
        for site, branch in zip(sites, branches, strict=True):
            swap(model.get_submodule(site.name), branch)
            swapped.append(model.get_submodule(site.name))
        switch.sites = tuple(site.name for site in sites)
        switch.batch_statistics = any(branch.running_mean is not None for branch in branches)
        hand_over_single_elements(model)
        RootHooks(switch).install(model)
    except BaseException:
        RootHooks.remove(model)
        take_back_single_elements(model)
        for module in swapped:
            swap_back(module)
        raise


def swap(norm: nn.Module, branch: Branch) -> None:
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
    try:
        norm._modules["passport"] = branch
    except BaseException:
        norm.__class__ = adapter.host_class
        raise


def swap_back(layer: nn.Module) -> None:
    """Make a two-branch layer the norm that it was."""
    adapter = type(layer)
    host_class = adapter.host_class  # type: ignore[attr-defined]
    del layer._modules["passport"]
    layer.__class__ = host_class


def detach(model: nn.Module) -> None:
    """Take all private branches out, without a warning."""
    for layer in passport_layers(model).values():
        swap_back(layer)
    take_back_single_elements(model)
    hide(model)
    RootHooks.remove(model)


def unpassportize(model: Model) -> Model:
    """Restore the plain model, in place and exactly; returns the same object.

    Classes, keys, hooks and flags are those from before :func:`passportize`; the parameters hold
    what was trained. The private branches are gone: save a claim first.

    Raises:
        NotPassportized: The model carries no private branch.
        WrappedModel: The model is still wrapped.

    Warns:
        UnsavedBranchWarning: The branch was trained and no claim was saved since.
    """
    _check_model(model, "unpassportize")
    if not is_passportized(model):
        raise NotPassportized(f"{type(model).__name__} carries no private branch")
    refuse_wrapped(model)
    switch = switch_of(model)
    if switch.trained and not switch.saved:
        warnings.warn(
            f"{type(model).__name__}: the trained private branch was not saved; without "
            "save_claim(model, path) its statistics are lost and only the signature can be "
            "verified",
            UnsavedBranchWarning,
            stacklevel=2,
        )
    detach(model)
    return model


def unlock(model: Model, passport: Passport) -> Model:
    """Give a passportized model that was loaded from a file its secret back, in place.

    ``torch.save`` of a live model never holds the secret, so its private branches come back
    locked: they run in public only.

    Raises:
        NotPassportized: The model carries no private branch.
        WrongPassport: It was passportized with another passport.
    """
    switch = switch_of(model)
    if not isinstance(passport, Passport):
        raise InvalidArgument(f"unlock: expected a Passport, got {type(passport).__name__}")
    if switch.layout is None or not passport.check_commitment(switch.commitment):
        raise WrongPassport(
            "unlock: the model was passportized with another passport; load that one"
        )
    layers = [layer for layer in passport_layers(model).values() if layer.passport.bound]
    secrets = ModelKey(passport, switch.layout).secrets()
    for layer, secret in zip(layers, secrets, strict=True):
        weights = layer.passport.weights
        assert weights is not None
        layer.passport.secret = secret.to(weights.rows()[0].device)
    return model


@contextmanager
def attached(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    config: PassportConfig,
    configs: Sequence[PassportConfig] | None = None,
    layout: Layout | None = None,
) -> Iterator[Switch]:
    """Private branches for the length of a ``with`` block; the model is left as it was."""
    switch = attach(model, sites, passport, config, configs, layout)
    try:
        yield switch
    finally:
        detach(model)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise WrappedModel if surgery would reach through DDP, FSDP, torch.compile or TorchScript."""
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            advice = _WRAPPERS.get(base.__name__)
            if advice is not None and base.__module__.startswith("torch."):
                place = f"its submodule {name!r}" if name else "the model"
                raise WrappedModel(
                    f"{place} is wrapped in {base.__name__}; passportize and unpassportize take "
                    f"the plain model: {advice}"
                )


def _check_model(model: object, verb: str) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(
            f"{verb}: expected a torch.nn.Module, got {type(model).__name__}; a state dict is "
            "loaded into a model first"
        )


def _with_fitting_passes(
    model: nn.Module, config: PassportConfig, example_inputs: Any
) -> PassportConfig:
    """Packed graphs cannot be appended to each other, so they get two passes."""
    if config.has_private_pass and config.passes == "doubled":
        packed = packed_module(model)
        reason = (
            packed_inputs(model, example_inputs)
            if packed is None
            else f"{packed or 'the model'} works on packed graphs"
        )
        if reason:
            _logger.info("%s: %s; passes='separate'", type(model).__name__, reason)
            return replace(config, passes="separate")
    return config


def _nothing_bound(planned: Plan) -> str:
    reasons = {site.reason for site in planned.sites if site.reason}
    listed = "; ".join(sorted(reasons)[:5])
    return (
        f"{planned.model}: none of its {len(planned.sites)} norms can carry a signature: {listed}. "
        "print(passportize.plan(model)) shows each"
    )
