"""How many rows of each weight carry a bit, where not all do.

Shapes alone decide it. Which rows they are, the key decides when it is derived from the layout, and
the weights never do: so a claimant has no choice here that is not in the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from passportize.layers.computed import effective_weight
from passportize.signature.rows import anchor_fan_in
from passportize.signature.site import Role, Site
from passportize.surgery.branches import anchor_weights

__all__ = ["picked_sites", "shared_out"]


def picked_sites(
    model: nn.Module, sites: Sequence[Site], bits: int, shortest_row: int
) -> tuple[list[Site], str]:
    """The same sites with so many rows picked, shared out in proportion to their numbers.

    Args:
        model: The model that they belong to.
        sites: All sites.
        bits: How many rows are to carry bits.
        shortest_row: Rows with fewer entries carry none.

    Returns:
        The sites, those without a row no longer bound, and a note for the plan.
    """
    rows = [
        part.channels
        if anchor_fan_in(tuple(effective_weight(owner, name).shape), part) >= shortest_row
        else 0
        for site in sites
        if site.role is Role.BOUND and site.anchor is not None
        for owner, name, part in anchor_weights(model, site.anchor.parts).owners
    ]
    counts = iter(shared_out(bits, rows))
    picked = [_picked(site, [next(counts) for _ in _parts(site)], shortest_row) for site in sites]
    whole = sum(site.bits for site in sites)
    note = f"{min(bits, sum(rows))} of {whole} rows carry bits; the key picks which"
    if sum(rows) < bits:
        note += (
            f"; {bits} were asked for, and no more have {shortest_row} entries (shortest_row= sets "
            "how many they need)"
        )
    return picked, note


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to sizes, none above its size, that add up to a total.

    By the largest remainder; of equal ones the first. The sum of the sizes where that is less.

    >>> shared_out(5, [10, 0, 6, 4])
    [3, 0, 1, 1]
    """
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    shares = [divmod(total * size, whole) for size in sizes]
    counts = [share for share, _ in shares]
    order = sorted(range(len(sizes)), key=lambda index: (-shares[index][1], index))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _parts(site: Site) -> Sequence[object]:
    return site.anchor.parts if site.role is Role.BOUND and site.anchor is not None else ()


def _picked(site: Site, counts: Sequence[int], shortest_row: int) -> Site:
    if not counts or site.anchor is None:
        return site
    if not any(counts):
        reason = "none of its rows was picked to carry a bit"
        if site.fan_in < shortest_row:
            reason = f"its rows have {site.fan_in} entries, fewer than shortest_row={shortest_row}"
        return replace(site, role=Role.SKIPPED, anchor=None, fan_in=0, reason=reason)
    parts = tuple(
        replace(part, picked=count) for part, count in zip(site.anchor.parts, counts, strict=True)
    )
    return replace(site, anchor=replace(site.anchor, parts=parts))
