"""What was marked: the sites of a model, the settings of each, the shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from passportize.config import PassportConfig
from passportize.signature.layout import Layout
from passportize.signature.site import Site

__all__ = ["Marking"]


@dataclass(frozen=True)
class Marking:
    """All that is known of a mark without its key: no tensor, no secret, no module.

    Attributes:
        config: The model-wide settings.
        sites: Bound sites and those with private statistics, in registration order.
        configs: The settings of every site.
        shapes: Shapes of the weights that the sites are bound to, by name.
    """

    config: PassportConfig
    sites: tuple[Site, ...]
    configs: tuple[PassportConfig, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def layout(self) -> Layout:
        """Where the signature bits lie."""
        return Layout.of(self.sites, self.configs, self.shapes)

    @property
    def bits(self) -> int:
        """Number of signature bits."""
        return sum(site.bits for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form; a site has a config of its own or null."""
        return {
            "config": self.config.to_dict(),
            "sites": [
                {
                    **site.to_dict(),
                    "config": None if config == self.config else config.to_dict(),
                }
                for site, config in zip(self.sites, self.configs, strict=True)
            ],
            "anchors": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Marking:
        """Inverse of :meth:`to_dict`, for records of our own: nothing is checked.

        Raises:
            KeyError, TypeError, ValueError: The record is not one of ours.
            InvalidArgument: A config makes no sense.
        """
        config = PassportConfig.from_dict(record["config"])
        sites: Sequence[Mapping[str, Any]] = record["sites"]
        own = [site["config"] for site in sites]
        return cls(
            config,
            tuple(
                Site.from_dict({key: site[key] for key in site if key != "config"})
                for site in sites
            ),
            tuple(config if each is None else PassportConfig.from_dict(each) for each in own),
            {name: tuple(shape) for name, shape in record["anchors"].items()},
        )
