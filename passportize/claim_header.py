"""The header of a claim file, read strictly into a claim."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from passportize import strict_json as strict
from passportize.claim import Claim
from passportize.config import PassportConfig
from passportize.site import ADDED_LATER, Anchor, AnchorPart, Role, Site

__all__ = ["claim_from"]


def claim_from(header: str, tensors: dict[str, Tensor]) -> Claim:
    """The claim that a header and its tensors say; the inverse of :meth:`Claim.header`.

    Args:
        header: The JSON text.
        tensors: The tensors of the claim by name.

    Raises:
        ValueError: An entry is missing, unknown, or not of its type or range.
        PassportizeError: A config or a site makes no sense.
    """
    record = strict.record(
        strict.parse(header),
        {
            "model",
            "architecture",
            "config",
            "sites",
            "anchors",
            "commitment",
            "weights",
            "structure",
        },
    )
    config = PassportConfig.from_dict(strict.typed(record["config"], dict))
    sites, configs = [], []
    for item in strict.typed(record["sites"], list):
        entry = dict(strict.typed(item, dict))
        own = entry.pop("config")
        configs.append(config if own is None else PassportConfig.from_dict(strict.typed(own, dict)))
        sites.append(_site(entry))
    return Claim(
        model=strict.text(record["model"]),
        architecture=strict.text(record["architecture"]),
        config=config,
        sites=tuple(sites),
        configs=tuple(configs),
        anchors={
            strict.text(name): strict.shape(shape)
            for name, shape in strict.typed(record["anchors"], dict).items()
        },
        commitment=strict.digest(record["commitment"]),
        weights=strict.digest(record["weights"]),
        structure=tuple(
            (strict.text(name), strict.shape(shape))
            for name, shape in strict.typed(record["structure"], list)
        ),
        tensors=tensors,
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
        norm_type=strict.text(entry["norm_type"]),
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
    )
