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
from passportize.errors import InvalidArgument
from passportize.signature.formulations import FORMULATIONS, Formulation, formulation_of
from passportize.signature.rows import anchor_fan_in
from passportize.signature.site import Anchor, Role, Site

__all__ = ["Layout", "anchor_of"]

_DOMAIN = "passportize/layout/v1"


@dataclass(frozen=True)
class Layout:
    """The bound sites of a model, in the order of their bits.

    Attributes:
        sites: Bound sites.
        responses: For each site the name of the response that its rows have
            (:data:`passportize.signature.formulations.FORMULATIONS`).
        shapes: For each site the shapes of the weights of its anchor parts.
        inputs: Digest of the inputs with which a suspect may be looked at too; empty without.
    """

    sites: tuple[Site, ...]
    responses: tuple[str, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    inputs: str = ""

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
            InvalidArgument: Two sites name different inputs.
        """
        inputs = {config.inputs for config in configs if config.inputs}
        if len(inputs) > 1:
            raise InvalidArgument(
                "two sites name different inputs; one set of inputs goes with a model"
            )
        bound = [
            (site, config)
            for site, config in zip(sites, configs, strict=True)
            if site.role is Role.BOUND and site.anchor is not None
        ]
        return cls(
            tuple(site for site, _ in bound),
            tuple(formulation_of(config).name for _, config in bound),
            tuple(
                tuple(tuple(int(n) for n in shapes[part.weight]) for part in anchor_of(site).parts)
                for site, _ in bound
            ),
            next(iter(inputs), ""),
        )

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights from which bits are read, by name, in order of first use."""
        return {
            part.weight: shape
            for site, shapes in zip(self.sites, self.shapes, strict=True)
            for part, shape in zip(anchor_of(site).parts, shapes, strict=True)
        }

    @property
    def bits(self) -> int:
        """Number of signature bits."""
        return sum(site.bits for site in self.sites)

    def formulation(self, site: int) -> Formulation:
        """How the rows of one site answer."""
        return FORMULATIONS[self.responses[site]]

    def fan_in(self, site: int) -> tuple[int, ...]:
        """Length of the passport vector of every part of one site."""
        return tuple(
            anchor_fan_in(shape, part)
            for shape, part in zip(
                self.shapes[site], anchor_of(self.sites[site]).parts, strict=True
            )
        )

    def digest(self) -> str:
        """SHA-256 over all that decides which bits are read and how, as hex."""
        records = [
            {
                "name": site.name,
                "channels": site.channels,
                "response": response,
                "parts": [part.to_dict() for part in anchor_of(site).parts],
                "shapes": [list(shape) for shape in shapes],
            }
            for site, response, shapes in zip(self.sites, self.responses, self.shapes, strict=True)
        ]
        # Layouts without inputs keep the digests that they had before there were any.
        whole = [_DOMAIN, records, *([self.inputs] if self.inputs else [])]
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def anchor_of(site: Site) -> Anchor:
    """The anchor of a bound site."""
    if site.anchor is None:
        raise ValueError(f"{site.name} is not bound")
    return site.anchor
