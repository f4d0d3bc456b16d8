"""Bits of every layer as bars, so few that they can be read: what is alike is one bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passportize.verification.verdict import SiteVerdict

__all__ = ["Bar", "bars_of"]

MOST = 16
"""Bars of single layers at most."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: The layer, or how many layers.
        matched, bits: Of them; no bits where they are missing.
        note: Why they are missing.
    """

    label: str
    matched: int
    bits: int
    note: str = ""

    @property
    def share(self) -> float:
        """Matching bits in percent."""
        return 100.0 * self.matched / self.bits if self.bits else 0.0

    @property
    def text(self) -> str:
        """What is written beside the bar."""
        return f"{self.matched:,} / {self.bits:,}" if self.bits else "missing"


def bars_of(sites: Sequence[SiteVerdict]) -> list[Bar]:
    """Bars for the sites of a verdict: full ones folded, the worst of the rest, missing ones last.

    Args:
        sites: In the order of the model.
    """
    full = [site for site in sites if site.bits and site.matched == site.bits]
    rest = [site for site in sites if site.bits and site.matched < site.bits]
    missing = [site for site in sites if not site.bits]
    shown = rest
    if len(rest) > MOST:
        worst = sorted(rest, key=lambda site: site.matched / site.bits)[:MOST]
        shown = [site for site in rest if site in worst]
    bars = _folded(full, "with every bit")
    bars += [Bar(_name(site), site.matched, site.bits) for site in shown]
    others = [site for site in rest if site not in shown]
    if others:
        bars.append(_sum(others, f"{len(others):,} further layers"))
    return bars + _folded(missing, "that are missing")


def _folded(sites: Sequence[SiteVerdict], what: str) -> list[Bar]:
    if len(sites) > 2:
        return [_sum(sites, f"{len(sites):,} layers {what}")]
    return [Bar(_name(site), site.matched, site.bits, site.note) for site in sites]


def _sum(sites: Sequence[SiteVerdict], label: str) -> Bar:
    return Bar(label, sum(site.matched for site in sites), sum(site.bits for site in sites))


def _name(site: SiteVerdict) -> str:
    return site.name or "(root)"
