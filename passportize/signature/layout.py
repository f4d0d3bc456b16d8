"""Where the bits of a model lie: a value with a digest, from which the model's key is derived.

If vectors and bits depended on the names of sites alone, a claimant could write a claim for a
stranger's model row by row, keeping what happens to fit his bits. Here every coin hangs on the
whole layout: whoever changes one row or name draws all of them anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passportize.config import PassportConfig
from passportize.signature.rows import anchor_fan_in
from passportize.signature.site import Anchor, Role, Site

__all__ = ["NORMALISED", "RAW", "Layout", "reading_of"]

RAW = "raw"
"""Responses as published: ``rows @ s``, with ``s`` uniform in (-1, 1)."""
NORMALISED = "normalised"
"""Responses in standard deviations, with ``s`` of signs (:mod:`passportize.signature.response`)."""

_DOMAIN = "passportize/layout/v1"


def reading_of(config: PassportConfig) -> str:
    """How the bits of a formulation are read: :data:`RAW` or :data:`NORMALISED`."""
    return RAW if config.formulation == "paper" else NORMALISED


@dataclass(frozen=True)
class Layout:
    """The bound sites of a model, in the order of their bits.

    Attributes:
        sites: Bound sites.
        readings: For each site :data:`RAW` or :data:`NORMALISED`.
        shapes: For each site the shapes of the weights of its anchor parts.
    """

    sites: tuple[Site, ...]
    readings: tuple[str, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(
        cls,
        sites: Sequence[Site],
        configs: Sequence[PassportConfig],
        shapes: Mapping[str, Sequence[int]],
    ) -> Layout:
        """The layout of some sites.

        Args:
            sites: Sites in order; those that are not bound are left out.
            configs: The formulation of each.
            shapes: Shape of every anchor weight, by name.

        Raises:
            KeyError: A shape is missing.
        """
        bound = [
            (site, config)
            for site, config in zip(sites, configs, strict=True)
            if site.role is Role.BOUND and site.anchor is not None
        ]
        return cls(
            tuple(site for site, _ in bound),
            tuple(reading_of(config) for _, config in bound),
            tuple(
                tuple(tuple(int(n) for n in shapes[part.weight]) for part in anchor_of(site).parts)
                for site, _ in bound
            ),
        )

    @property
    def bits(self) -> int:
        """Number of signature bits."""
        return sum(site.channels for site in self.sites)

    def fan_in(self, site: int) -> tuple[int, ...]:
        """Length of the passport vector of every part of one site."""
        return tuple(
            anchor_fan_in(shape, part)
            for shape, part in zip(
                self.shapes[site], anchor_of(self.sites[site]).parts, strict=True
            )
        )

    def digest(self) -> str:
        """SHA-256 over all that decides how a bit is read, as hex."""
        records = [
            {
                "name": site.name,
                "channels": site.channels,
                "reading": reading,
                "parts": [part.to_dict() for part in anchor_of(site).parts],
                "shapes": [list(shape) for shape in shapes],
            }
            for site, reading, shapes in zip(self.sites, self.readings, self.shapes, strict=True)
        ]
        text = json.dumps([_DOMAIN, records], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def anchor_of(site: Site) -> Anchor:
    """The anchor of a bound site."""
    if site.anchor is None:
        raise ValueError(f"{site.name} is not bound")
    return site.anchor
