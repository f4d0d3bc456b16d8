"""Giving a live model its private branches, and taking them out again: the public functions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from passportize.config import PassportConfig
from passportize.errors import (
    AlreadyPassportized,
    DegenerateSite,
    InvalidArgument,
    NotPassportized,
    SurgeryError,
    WrongPassport,
)
from passportize.layers.joint_forward import RootHooks
from passportize.layers.missing_bits import warn_of_missing_bits
from passportize.layers.model import is_passportized, passport_layers, switch_of
from passportize.layers.own_methods import wrapped_later
from passportize.layers.private_keys import check_own_keys
from passportize.layers.switch import Switch
from passportize.layers.wrappers import refuse_wrapped
from passportize.passport.passport import Passport
from passportize.signature.model_key import ModelKey
from passportize.signature.site import Role
from passportize.surgery.branches import put_in_branches, take_out_branches
from passportize.surgery.late_doubling import find_late_entry
from passportize.surgery.norms import find_norms
from passportize.surgery.passes import first_passes, settle_on_example
from passportize.surgery.planning import check_plannable, make_plan
from passportize.surgery.selection import Where, site_configs
from passportize.surgery.site_plan import Plan
from passportize.surgery.stand_ins import stand_ins
from passportize.utils.all_or_nothing import all_or_nothing
from passportize.utils.frozen import paused_collection

__all__ = ["UnsavedBranchWarning", "passportize", "unlock", "unpassportize"]

Model = TypeVar("Model", bound=nn.Module)

_logger = logging.getLogger(__name__)


class UnsavedBranchWarning(UserWarning):
    """A trained private branch is about to be thrown away without a claim having been saved."""


@all_or_nothing
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
    check: bool = True,
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
        check: Try the joint pass in training mode, on the example input or at the first training
            step: public outputs, statistics and gradients have to be the plain model's. Models
            whose samples meet get two passes by that.

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
    with paused_collection():
        planned, switch = _two_branches(
            model, passport, config, where, overrides, example_inputs, anchors, include_frozen
        )
    switch.check = check
    settle_on_example(model, switch, example_inputs)
    for site in planned.sites:
        if site.role in (Role.SKIPPED, Role.UNREACHED) and site.reason != "left out by where=":
            what = site.role.value
            _logger.info("%s (%s): %s: %s", site.name, site.layer_type, what, site.reason)
    return model


@all_or_nothing
def unpassportize(model: Model) -> Model:
    """Restore the plain model, in place and exactly; returns the same object.

    Classes, keys, hooks and flags are those from before :func:`passportize`; the parameters hold
    what was trained. The private branches are gone: save a claim first.

    Raises:
        NotPassportized: The model carries no private branch.
        WrappedModel: The model is still wrapped.
        SurgeryError: The forward of a layer is. The model is as before.

    Warns:
        UnsavedBranchWarning: The branch was trained and no claim was saved since.
        MissingBitsWarning: Likewise, and the weights do not carry the signature either.
    """
    _check_model(model, "unpassportize")
    if not is_passportized(model):
        raise NotPassportized(f"{type(model).__name__} carries no private branch")
    refuse_wrapped(model)
    for name, layer in passport_layers(model).items():
        if wrapped_later(layer):
            raise SurgeryError(
                f"{name}: its forward was wrapped after passportize (as hooks of accelerate do) "
                "and would call the two-branch layer that it no longer is; take the wrapper off "
                "first (accelerate.hooks.remove_hook_from_module(model, recurse=True), say)"
            )
    switch = switch_of(model)
    if switch.trained and not switch.saved:
        warnings.warn(
            f"{type(model).__name__}: the trained private branch was not saved; without "
            "save_claim(model, path) its statistics are lost and only the signature can be "
            "verified",
            UnsavedBranchWarning,
            stacklevel=3,
        )
        warn_of_missing_bits(model, stacklevel=3)
    take_out_branches(model)
    return model


@all_or_nothing
def unlock(model: Model, passport: Passport) -> Model:
    """Give a passportized model that was loaded from a file its secret back, in place.

    ``torch.save`` of a live model never holds the secret, so its private branches come back
    locked: they run in public only. Copies and files of a ``torch.fx.GraphModule`` have lost the
    hooks on the root as well; they are put back here, on ``model``.

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
    if RootHooks.root_of(model) is None:
        refuse_wrapped(model)
        RootHooks(switch).put_in(model)
    return model


def _check_model(model: object, verb: str) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(
            f"{verb}: expected a torch.nn.Module, got {type(model).__name__}; a state dict is "
            "loaded into a model first"
        )


def _two_branches(
    model: nn.Module,
    passport: Passport,
    config: PassportConfig | None,
    where: Where | None,
    overrides: Mapping[str, PassportConfig | Mapping[str, Any]] | None,
    example_inputs: Any,
    anchors: Mapping[str, str] | None,
    include_frozen: bool,
) -> tuple[Plan, Switch]:
    """Plan the branches of a model and put them in; nothing is tried yet."""
    refuse_wrapped(model)
    if is_passportized(model):
        raise AlreadyPassportized(
            f"{type(model).__name__} already carries private branches (first: "
            f"{next(iter(passport_layers(model)))}); call unpassportize(model) first"
        )
    check_own_keys(model)
    config = config or PassportConfig.keyed()
    check_plannable(model, config)
    found = find_norms(model)
    with stand_ins(model, {norm.name for norm in found}, example_inputs) as exposed:
        if exposed:
            found = find_norms(model)
        planned = make_plan(model, found, config, where, example_inputs, anchors, include_frozen)
        config, automatic = first_passes(model, config)
        sites = [site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS)]
        if not planned.bits:
            raise DegenerateSite(_nothing_bound(planned, config.has_private_pass and not where))
        late = None
        if where is not None and config.has_private_pass and config.passes == "doubled":
            late = find_late_entry(model, sites, example_inputs)
        if late is not None:
            sites = [site for site in sites if site.name not in late.trunk]
            _logger.info("the batch is doubled at %s; what is before it runs once", late.name)
        configs = site_configs(sites, config, overrides)
        entry = late.name if late is not None else ""
        switch = put_in_branches(model, sites, passport, config, configs, entry=entry)
        switch.automatic = automatic
        switch.samples_only = any(site.name in planned.samples_only for site in sites)
    return planned, switch


def _nothing_bound(planned: Plan, without_norms: bool) -> str:
    reasons = {site.reason for site in planned.sites if site.reason}
    listed = "; ".join(sorted(reasons)[:5])
    hint = ", and config=PassportConfig.signature() marks its matrices without them"
    return (
        f"{planned.model}: none of its {len(planned.sites)} norms can carry a signature: {listed}. "
        f"print(passportize.plan(model)) shows each{hint if without_norms else ''}"
    )
