"""Planning: what surgery would do with every normalization layer of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from passportize.anchors.search import AnchorSearch, find_anchors
from passportize.anchors.trail import Step, Trail, named
from passportize.config import MINIMUM_FAN_IN, PassportConfig
from passportize.errors import InvalidArgument, NoNormalization
from passportize.layers.computed import effective_weight, sources_of
from passportize.layers.derived import plain_class
from passportize.layers.weight_owner import OWN_RULE
from passportize.layers.wrappers import refuse_scripted
from passportize.signature.formulations import NORMALISED, formulation_of
from passportize.signature.rows import anchor_fan_in
from passportize.signature.site import Anchor, AnchorPart, Role, Site
from passportize.surgery.branches import anchor_weights
from passportize.surgery.mean_free_rows import name_factors, read_less_mean_rows
from passportize.surgery.norms import FoundNorm, find_norms, measures_batch
from passportize.surgery.own_tensors import check_own_tensors
from passportize.surgery.passes import passes_note
from passportize.surgery.picking import picked_sites
from passportize.surgery.selection import Where, select
from passportize.surgery.site_plan import Plan
from passportize.surgery.stand_ins import put_in_stand_ins, take_out_stand_ins
from passportize.surgery.weight_sites import weight_sites
from passportize.utils.all_or_nothing import all_or_nothing
from passportize.utils.names import describe_type

__all__ = ["check_plannable", "make_plan", "plan"]

_logger = logging.getLogger(__name__)


@all_or_nothing
def plan(
    model: nn.Module,
    *,
    config: PassportConfig | None = None,
    where: Where | None = None,
    example_inputs: Any = None,
    anchors: Mapping[str, str] | None = None,
    include_frozen: bool = False,
    check: bool = True,
) -> Plan:
    """Find every normalization layer of a model and the weight it would be bound to.

    Args:
        model: Any model; it is only read.
        config: Formulation; decides whether norms without bits need private statistics.
        where: Which norms to bind: a glob pattern on dotted names, several, or a predicate.
        example_inputs: A tensor, a tuple of arguments, a dict of keyword arguments, or a function
            that runs the model. timm models need none.
        anchors: Overrides: ``{"norm name": "weight name"}``.
        include_frozen: Bind norms whose anchor does not train, too.
        check: Try on an example input how many passes a joint training step will take.

    Raises:
        InvalidArgument: An argument has the wrong type.
        UnknownSite: A pattern or override names no norm.
        NoNormalization: The model has no norm at all, and the formulation needs one.
        TracingError: The model could not be read.
        UninitializedModule: A lazy norm has not seen data yet.
        WrappedModel: It, or a part of it with norms, is TorchScript.
        SurgeryError: A tensor of the model could not be trained, or not be claimed later.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"plan: expected a torch.nn.Module, got {type(model).__name__}")
    config = config or PassportConfig.keyed()
    refuse_scripted(model)
    check_plannable(model, config)
    found = find_norms(model)
    exposed = put_in_stand_ins(model, {norm.name for norm in found}, example_inputs)
    try:
        if exposed:
            found = find_norms(model)
        planned = make_plan(model, found, config, where, example_inputs, anchors, include_frozen)
        if not check:
            return planned
        passes, note = passes_note(model, planned.sites, config, example_inputs)
        return replace(planned, passes=passes, joint_step=note)
    finally:
        if exposed:
            take_out_stand_ins(model)


def check_plannable(model: nn.Module, config: PassportConfig) -> None:
    """Refuse what no plan can be made of.

    Raises:
        InvalidArgument: ``config`` has the wrong type.
        SurgeryError: A tensor of the model could not be trained, or not be claimed later.
    """
    if not isinstance(config, PassportConfig):
        raise InvalidArgument(
            f"config={config!r} must be a PassportConfig, such as PassportConfig.keyed()"
        )
    check_own_tensors(model)


def make_plan(
    model: nn.Module,
    found: Sequence[FoundNorm],
    config: PassportConfig,
    where: Where | None,
    example_inputs: Any,
    anchors: Mapping[str, str] | None,
    include_frozen: bool,
) -> Plan:
    """The plan of a model that was checked and whose functional norms have their stand-ins.

    Args:
        model: The model.
        found: Its norms.
        config: As for :func:`plan`, like the others.
        where: Likewise.
        example_inputs: Likewise.
        anchors: Likewise.
        include_frozen: Likewise.
    """
    if not found:
        return _plan_of_weights(model, config, where, anchors, include_frozen)
    chosen = select([(norm.name, *norm.aliases) for norm in found], where, "where")
    widths = {
        norm.name: tuple(dict.fromkeys(n for n, _ in norm.adapter.channel_choices(norm.module)))
        for norm in found
        if norm.adapter is not None
    }
    if widths:
        search = find_anchors(model, widths, example_inputs=example_inputs, user_anchors=anchors)
    else:
        search = AnchorSearch(anchors={}, executed=None, method="none", notes=[])
    if formulation_of(config) is NORMALISED:
        by_name = {norm.name: norm for norm in found}
        search.anchors = name_factors(
            search.anchors, by_name, _crossed(search), dict(model.named_parameters())
        )
        search.anchors = read_less_mean_rows(search.anchors, by_name)
    sites = []
    for norm, wanted in zip(found, chosen, strict=True):
        sites.append(_site(model, norm, wanted, search, config, include_frozen))
    if not config.has_private_pass and where is None and not anchors and not _any_bound(sites):
        return _plan_of_weights(model, config, where, anchors, include_frozen)
    mixed = [norm.name for norm in found if norm.adapter is None and measures_batch(norm.module)]
    if mixed and config.has_private_pass:
        search.notes.append(
            f"{', '.join(mixed[:3])}{' and others' if len(mixed) > 3 else ''}: measured over the "
            "batch and left as they are, so in training they see the samples of both branches; "
            "register an adapter, or use PassportConfig.signature()"
        )
    if config.bits is not None:
        sites, note = picked_sites(model, sites, config.bits, config.shortest_row)
        search.notes.append(note)
    for note in search.notes:
        _logger.info("%s: %s", type(model).__name__, note)
    return Plan(
        type(model).__name__,
        tuple(sites),
        search.method,
        tuple(search.notes),
        frozenset(norm.name for norm in found if _sees_samples_only(norm, search)),
        trails=tuple(search.trail(name) for name in widths),
    )


def _crossed(search: AnchorSearch) -> dict[str, tuple[Step, ...]]:
    """The steps between each norm and its anchor."""
    return {
        name: attempt.crossed
        for name, attempts in search.attempts.items()
        for attempt in reversed(attempts)
        if attempt.end is not None
    }


def _any_bound(sites: list[Site]) -> bool:
    return any(site.role is Role.BOUND for site in sites)


def _sees_samples_only(norm: FoundNorm, search: AnchorSearch) -> bool:
    """By the size of its input; a BatchNorm1d whose input is not known may be called so."""
    size = search.per_sample.get(norm.name)
    if norm.adapter is None or not norm.adapter.mixes_samples(norm.module):
        return False
    if size is None:
        return isinstance(norm.module, nn.BatchNorm1d)
    return size <= norm.adapter.channel_choices(norm.module)[0][0]


def _plan_of_weights(
    model: nn.Module,
    config: PassportConfig,
    where: Where | None,
    anchors: Mapping[str, str] | None,
    include_frozen: bool,
) -> Plan:
    kind = type(model).__name__
    if config.has_private_pass:
        raise NoNormalization(
            f"{kind} has no normalization layer, so there is nothing to give a private branch as "
            f"{config.formulation!r} does; its conv and linear weights can carry a signature: "
            "passportize(model, passport, config=PassportConfig.signature())"
        )
    if anchors:
        raise InvalidArgument(
            f"anchors= names normalization layers, and {kind} has none; its weights are their own "
            "anchors, choose among them with where="
        )
    sites = list(weight_sites(model, where, include_frozen, MINIMUM_FAN_IN))
    notes = ["no norm carries bits: they lie in the weights themselves"]
    if config.bits is not None:
        sites, note = picked_sites(model, sites, config.bits, config.shortest_row)
        notes.append(note)
    own = [(site.name, site.anchor) for site in sites if site.anchor is not None]
    trails = tuple(Trail(name, (named(OWN_RULE, anchor.parts),)) for name, anchor in own)
    return Plan(kind, tuple(sites), "weights", tuple(notes), trails=trails)


def _site(
    model: nn.Module,
    norm: FoundNorm,
    wanted: bool,
    search: AnchorSearch,
    config: PassportConfig,
    include_frozen: bool,
) -> Site:
    site = Site(
        name=norm.name,
        aliases=norm.aliases,
        layer_type=describe_type(plain_class(norm.module)),
        role=Role.SKIPPED,
        reason=norm.reason,
    )
    if norm.adapter is None:
        return site
    choices = norm.adapter.channel_choices(norm.module)
    site = replace(site, channels=choices[0][0], channel_axis=choices[0][1])
    if search.executed is not None and norm.name not in search.executed:
        return replace(
            site, role=Role.UNREACHED, reason="does not run in the forward pass of this model"
        )
    if norm.adapter.frozen(norm.module) and not include_frozen:
        return replace(
            site, reason="its statistics and factors are frozen; bind it with include_frozen=True"
        )
    anchor = search.anchors.get(norm.name)
    owners = anchor_weights(model, anchor.parts).owners if anchor is not None and wanted else []
    reason = _why_not(anchor, owners, wanted, include_frozen)
    if not reason and anchor is not None:
        shapes = [tuple(effective_weight(owner, name).shape) for owner, name, _ in owners]
        fan_in = min(
            anchor_fan_in(shape, part) for shape, part in zip(shapes, anchor.parts, strict=True)
        )
        if fan_in < MINIMUM_FAN_IN:
            reason = (
                f"a row of {anchor.parts[0].weight} has {fan_in} entries, fewer than the "
                f"{MINIMUM_FAN_IN} that a bit needs"
            )
        else:
            axis = dict(choices)[anchor.channels]
            return replace(
                site,
                role=Role.BOUND,
                channels=anchor.channels,
                channel_axis=axis,
                anchor=anchor,
                fan_in=fan_in,
            )
    if config.has_private_pass and norm.adapter.mixes_samples(norm.module):
        return replace(site, role=Role.STATISTICS, reason=reason)
    return replace(site, reason=reason)


def _why_not(
    anchor: Anchor | None,
    owners: Sequence[tuple[nn.Module, str, AnchorPart]],
    wanted: bool,
    include_frozen: bool,
) -> str:
    if not wanted:
        return "left out by where="
    if anchor is None:
        return "no weight of its width produces or consumes it; set one with anchors="
    sources = (source for owner, name, _ in owners for source in sources_of(owner, name))
    if not include_frozen and not any(source.requires_grad for source in sources):
        return f"its anchor {anchor.parts[0].weight} is frozen; bind it with include_frozen=True"
    return ""
