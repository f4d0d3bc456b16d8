"""Layouts without a model, for tests of keys, readings and their price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from passportize.config import PassportConfig
from passportize.signature.layout import Layout
from passportize.signature.site import Anchor, AnchorPart, Role, Site

KEYED, PAPER = PassportConfig.keyed(), PassportConfig.paper()


def bound(name: str, *parts: AnchorPart) -> Site:
    """A site that is bound to the rows of some weights."""
    channels = sum(part.channels for part in parts)
    return Site(name, "torch.nn.BatchNorm2d", Role.BOUND, channels, anchor=Anchor(parts, "user"))


def layout_of(
    sites: Sequence[Site],
    shapes: Mapping[str, Sequence[int]],
    raw: Sequence[str] = (),
) -> Layout:
    """The layout of some sites, ``raw`` ones by name."""
    configs = [PAPER if site.name in raw else KEYED for site in sites]
    return Layout.of(sites, configs, shapes)


def plain_layout(shapes: Mapping[str, Sequence[int]]) -> Layout:
    """One site for all rows of each weight."""
    sites = [bound(f"norm_of_{name}", AnchorPart(name, shape[0])) for name, shape in shapes.items()]
    return layout_of(sites, shapes)
