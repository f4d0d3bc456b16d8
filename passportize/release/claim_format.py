"""The header of a claim file: read strictly into a claim, whose parts must belong together."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from passportize.config import PassportConfig
from passportize.release import strict_json as strict
from passportize.release.claim import Claim
from passportize.release.preprocessing import Preprocessing
from passportize.release.strict_json import require
from passportize.signature.marking import Marking
from passportize.signature.rows import anchor_fan_in, anchor_width
from passportize.signature.site import ADDED_LATER, Anchor, AnchorPart, Role, Site

__all__ = ["check_claim", "claim_from"]

_REQUIRED = {"model", "architecture", "config", "sites", "anchors", "commitment", "weights"}
_OPTIONAL = {"preprocessing"}


def claim_from(header: str, tensors: dict[str, Tensor]) -> Claim:
    """The claim that a header and its tensors say; the inverse of :meth:`Claim.header`.

    Args:
        header: The JSON text.
        tensors: The tensors of the claim by name.

    Raises:
        ValueError: An entry is missing, unknown, or not of its type or range.
        PassportizeError: A config or a site makes no sense.
    """
    entries = strict.typed(strict.parse(header), dict)
    record = strict.record(entries, _REQUIRED | (_OPTIONAL & set(entries)))
    config = PassportConfig.from_dict(strict.typed(record["config"], dict))
    sites, configs = [], []
    for item in strict.typed(record["sites"], list):
        entry = dict(strict.typed(item, dict))
        own = entry.pop("config")
        configs.append(config if own is None else PassportConfig.from_dict(strict.typed(own, dict)))
        sites.append(_site(entry))
    marking = Marking(
        config,
        tuple(sites),
        tuple(configs),
        {
            strict.text(name): strict.shape(shape)
            for name, shape in strict.typed(record["anchors"], dict).items()
        },
    )
    return Claim(
        model=strict.text(record["model"]),
        architecture=strict.text(record["architecture"]),
        marking=marking,
        commitment=strict.digest(record["commitment"]),
        weights=strict.digest(record["weights"]),
        tensors=tensors,
        preprocessing=(
            Preprocessing.from_dict(record["preprocessing"]) if "preprocessing" in record else None
        ),
    )


def _site(entry: dict[str, Any]) -> Site:
    strict.record(entry, {field.name for field in fields(Site)})
    anchor = None
    if entry["anchor"] is not None:
        inner = strict.record(entry["anchor"], {field.name for field in fields(Anchor)})
        anchor = Anchor(
            parts=tuple(_part(part) for part in strict.typed(inner["parts"], list)),
            rule=strict.text(inner["rule"]),
            crossed=tuple(strict.text(step) for step in strict.typed(inner["crossed"], list)),
        )
    role = Role(entry["role"])
    strict.require(role in (Role.BOUND, Role.STATISTICS), f"a site is {role.value}")
    return Site(
        name=strict.text(entry["name"]),
        layer_type=strict.text(entry["layer_type"]),
        role=role,
        channels=strict.count(entry["channels"], 1),
        channel_axis=strict.count(entry["channel_axis"]),
        anchor=anchor,
        fan_in=strict.count(entry["fan_in"]),
        aliases=tuple(strict.text(alias) for alias in strict.typed(entry["aliases"], list)),
        reason=strict.text(entry["reason"]),
    )


def _part(entry: Any) -> AnchorPart:
    known = {field.name for field in fields(AnchorPart)}
    record = strict.record(entry, known - (ADDED_LATER - set(strict.typed(entry, dict))))
    strict.require(record["axis"] in ("output", "input"), "an anchor has an unknown axis")
    return AnchorPart(
        weight=strict.text(record["weight"]),
        channels=strict.count(record["channels"], 1),
        axis=strict.text(record["axis"]),
        start=strict.count(record["start"]),
        repeats=strict.count(record["repeats"], 1),
        groups=strict.count(record["groups"], 1),
        transposed=strict.typed(record["transposed"], bool),
        expert_shape=strict.shape(record.get("expert_shape", [])),
        centred=strict.typed(record.get("centred", False), bool),
        less_mean_row=strict.typed(record.get("less_mean_row", False), bool),
        factor=strict.text(record["factor"]) if "factor" in record else "",
        picked=strict.count(record["picked"]) if "picked" in record else None,
    )


BOTTLENECK = ("bottleneck.0.weight", "bottleneck.2.weight")
MOST_BITS = 1 << 22
LONGEST_ROW = 1 << 30


def check_claim(claim: Claim) -> None:
    """Refuse a claim whose parts do not belong together.

    Raises:
        ValueError: They do not; with the reason.
        KeyError: A tensor or the shape of an anchor is missing.
    """
    shapes = claim.marking.shapes
    require(len({site.name for site in claim.sites}) == len(claim.sites), "a site appears twice")
    require(0 < claim.bits <= MOST_BITS, f"{claim.bits} signature bits")
    used = set()
    expected: dict[str, tuple[int, ...]] = {}
    for index, (site, config) in enumerate(zip(claim.sites, claim.marking.configs, strict=True)):
        if site.role is not Role.BOUND:
            continue
        require(site.anchor is not None and bool(site.anchor.parts), "a bound site has no anchor")
        assert site.anchor is not None
        require(site.anchor.channels == site.channels, f"{site.name}: its anchor does not fit")
        require(site.bits > 0, f"{site.name}: a bound site carries no bit")
        for part in site.anchor.parts:
            used.add(part.weight)
            require(part.bits <= part.channels, f"{site.name}: more rows picked than there are")
            may_pick = part.picked is None or config.formulation == "signature"
            require(may_pick, f"{site.name}: rows are picked, which is for 'signature' alone")
            shape = shapes[part.weight]
            last = part.start + part.channels * part.repeats
            require(last <= anchor_width(shape, part), f"{site.name}: rows that no weight has")
            fan_in = anchor_fan_in(shape, part)
            require(0 < fan_in <= LONGEST_ROW, f"{site.name}: rows of {fan_in} entries")
        if config.has_bottleneck:
            first = claim.tensors[f"{index}.{BOTTLENECK[0]}"]
            hidden = first.shape[0]
            expected[f"{index}.{BOTTLENECK[0]}"] = (hidden, site.channels)
            expected[f"{index}.{BOTTLENECK[1]}"] = (site.channels, hidden)
    require(used == set(shapes), "its anchors are not those of its sites")
    require(set(expected) == set(claim.tensors), "its tensors are not those of its sites")
    for name, shape in expected.items():
        tensor = claim.tensors[name]
        require(tuple(tensor.shape) == shape, f"the tensor {name} has another shape")
        require(tensor.dtype.is_floating_point, f"the tensor {name} holds no numbers")
        require(bool(torch.isfinite(tensor).all()), f"the tensor {name} is not finite")
