"""Which tensor of a suspect has the name of a weight of a layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from passportize.signature.layout import Layout

__all__ = [
    "BY_ASSIGNMENT",
    "BY_LAYOUT",
    "BY_NAME",
    "BY_NAME_CENTRED",
    "find_by_name",
    "match_names",
]

BY_NAME = "name"
BY_NAME_CENTRED = "name, rows behind factors less the mean of factor times row"
BY_ASSIGNMENT = "assignment among equal shapes"
BY_LAYOUT = "assignment among equal shapes, also of kernels in other layouts"

Shape = tuple[int, ...]


def match_names(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The suspect's name for the weights of a layout, by name up to a prefix common to all.

    Nothing but names and shapes is looked at, so no choice is left to anybody.

    Args:
        layout: Where the bits lie.
        tensors: The suspect's tensors by name.

    Returns:
        Without the weights that the suspect lacks.
    """
    there = {name: tuple(t.shape) for name, t in tensors.items() if not t.is_complex()}
    return find_by_name(layout.weights, there)


def find_by_name(wanted: Mapping[str, Shape], there: Mapping[str, Shape]) -> dict[str, str]:
    """Equal names and shapes under the common prefix with which most are found.

    Args:
        wanted: Shapes by name.
        there: Shapes by name, among which to look; the prefix may be on either side.

    Returns:
        Names in ``there`` by names in ``wanted``, without those that were not found.
    """
    best: dict[str, str] = {}
    for removed, added in _prefixes(list(wanted), list(there)):
        hits = {}
        for name, shape in wanted.items():
            if name.startswith(removed):
                other = added + name[len(removed) :]
                if there.get(other) == shape:
                    hits[name] = other
        if len(hits) > len(best):
            best = hits
    return best


def _prefixes(claimed: Sequence[str], suspect: Sequence[str]) -> list[tuple[str, str]]:
    """Prefixes to remove from and to add to the claim's names, the plainest first."""
    there = set(suspect)
    found: set[tuple[str, str]] = {("", "")}
    by_tail: dict[str, set[str]] = defaultdict(set)
    for name in suspect:
        for prefix, tail in _cuts(name):
            by_tail[tail].add(prefix)
    for name in claimed:
        found.update(("", prefix) for prefix in by_tail[name])
        found.update((prefix, "") for prefix, tail in _cuts(name) if tail in there)
    return sorted(found, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))


def _cuts(name: str) -> list[tuple[str, str]]:
    """Every way to cut a dotted name in two: the prefix with its dot, and the rest."""
    return [(name[: at + 1], name[at + 1 :]) for at, char in enumerate(name) if char == "."]
