"""Which tensor of a suspect is which tensor of a claim."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from passportize.signature.layout import Layout, anchor_of
from passportize.signature.null_model import log2_arrangements

__all__ = [
    "BY_NAME",
    "BY_ORDER",
    "Table",
    "TensorMatch",
    "match_layout",
    "match_tensors",
    "structure_of",
]

BY_NAME = "name"
BY_ORDER = "order and shape"

SUBSTANTIAL = 0.1
"""Share of tensors that may be missing by name before order and shape are looked at."""

Shape = tuple[int, ...]
Table = Sequence[tuple[str, Sequence[int]]]
"""Names and shapes of tensors, in their order."""


@dataclass(frozen=True)
class TensorMatch:
    """Result of :func:`match_tensors`.

    Attributes:
        found: Name in the suspect for every name in the claim; None where there is none.
        how: :data:`BY_NAME` or, if any was found otherwise, :data:`BY_ORDER`.
        groups: For every tensor that was not found by its name, the group of tensors in which
            its place was counted, and how many the suspect has of them.
    """

    found: Mapping[str, str | None]
    how: str
    groups: Mapping[str, tuple[Hashable, int]]

    def by_name(self, used: Iterable[str]) -> bool:
        """Whether all of these tensors were found by their names."""
        return not any(name in self.groups for name in used)

    def log2_alternatives(self, used: Iterable[str]) -> float:
        """``log2`` of the number of ways in which these tensors could have been matched.

        Where names say nothing, the order in a claim is the claimant's word. A p-value over all
        the orders that could have been claimed is larger by their number.

        Args:
            used: Names in the claim of the tensors from which bits are read.
        """
        counts = Counter(self.groups[name] for name in set(used) if name in self.groups)
        # One bit more for each group: it was looked up with or without the attribute's name.
        return sum(log2_arrangements(size, chosen) + 1.0 for (_, size), chosen in counts.items())


def match_layout(
    layout: Layout, structure: Table, tensors: Mapping[str, Tensor], names: bool
) -> TensorMatch:
    """Find what stands for the tensors of a released model, the weights of a layout first of all.

    Args:
        layout: Where the bits lie; its weights decide whether names are enough.
        structure: Names and shapes of the released tensors.
        tensors: The suspect's tensors by name.
        names: Whether names count; without, everything is matched by order and shape.
    """
    decisive = {part.weight for site in layout.sites for part in anchor_of(site).parts}
    return match_tensors(structure, structure_of(tensors), names=names, decisive=decisive)


def match_tensors(
    claimed: Table,
    suspect: Table,
    *,
    names: bool = True,
    decisive: Collection[str] | None = None,
) -> TensorMatch:
    """Find the tensors of a claim in a suspect, by name or by order among equal shapes.

    Exact names come first, up to a prefix that all of them share (``"module."``, say). If more
    than a tenth of the tensors is not found so, the rest is matched by order: the k-th tensor of
    a shape with the k-th of this shape where there are equally many, else along the longest
    common runs of shapes. Names of attributes (``weight``, ``running_mean``) are told apart
    first, and only then mixed.

    Args:
        claimed: Names and shapes of the claim, in the order of its state dict.
        suspect: Names and shapes of the suspect, likewise.
        names: Whether names count; without, everything is matched by order and shape.
        decisive: Names in the claim that decide about the common prefix and whether names are
            enough, all by default.

    Returns:
        The same result for the same arguments.
    """
    left = [(name, tuple(shape)) for name, shape in claimed]
    right = [(name, tuple(shape)) for name, shape in suspect]
    found: dict[str, str | None] = {name: None for name, _ in left}
    groups: dict[str, tuple[Hashable, int]] = {}
    if names:
        found.update(_by_name(left, right, set(decisive) if decisive is not None else set(found)))
    looked_for = [name for name in found if decisive is None or name in decisive]
    missing = sum(found[name] is None for name in looked_for)
    if missing <= SUBSTANTIAL * len(looked_for):
        return TensorMatch(found, BY_NAME, groups)
    for with_attribute in (True, False):
        taken = {partner for partner in found.values() if partner is not None}
        rest_left = [item for item in left if found[item[0]] is None]
        rest_right = [item for item in right if item[0] not in taken]
        key = _attribute_and_shape if with_attribute else _shape_alone
        pairs = _by_order(rest_left, rest_right, key)
        found.update(pairs)
        sizes = Counter(key(item) for item in right)
        groups.update((item[0], (key(item), sizes[key(item)])) for item in left if item[0] in pairs)
    return TensorMatch(found, BY_ORDER if groups else BY_NAME, groups)


def _attribute_and_shape(item: tuple[str, Shape]) -> Hashable:
    return item[0].rpartition(".")[2], item[1]


def _shape_alone(item: tuple[str, Shape]) -> Hashable:
    return item[1]


def _by_name(
    claimed: Sequence[tuple[str, Shape]], suspect: Sequence[tuple[str, Shape]], decisive: set[str]
) -> dict[str, str]:
    """Equal names and shapes under the common prefix that finds the most decisive ones."""
    shapes = dict(suspect)
    best: dict[str, str] = {}
    most = 0
    for removed, added in _prefixes([n for n, _ in claimed], [n for n, _ in suspect]):
        hits = {}
        for name, shape in claimed:
            if name.startswith(removed):
                other = added + name[len(removed) :]
                if shapes.get(other) == shape:
                    hits[name] = other
        score = len(decisive & hits.keys())
        if score > most:
            best, most = hits, score
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


def _by_order(
    claimed: Sequence[tuple[str, Shape]],
    suspect: Sequence[tuple[str, Shape]],
    key: Callable[[tuple[str, Shape]], Hashable],
) -> dict[str, str]:
    """Pairs by order among tensors with equal keys."""
    left: dict[Hashable, list[str]] = defaultdict(list)
    right: dict[Hashable, list[str]] = defaultdict(list)
    for groups, items in ((left, claimed), (right, suspect)):
        for item in items:
            groups[key(item)].append(item[0])
    pairs: dict[str, str] = {}
    uneven = set()
    for group, members in left.items():
        others = right.get(group, [])
        if len(members) == len(others):
            pairs.update(zip(members, others, strict=True))
        elif others:
            uneven.add(group)
    if uneven:
        keys = [key(item) for item in claimed], [key(item) for item in suspect]
        matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
        for block in matcher.get_matching_blocks():
            for step in range(block.size):
                if keys[0][block.a + step] in uneven:
                    pairs[claimed[block.a + step][0]] = suspect[block.b + step][0]
    return pairs


def structure_of(state_dict: Mapping[str, object]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the tensors of a state dict, in its order."""
    return tuple(
        (name, tuple(int(size) for size in value.shape))
        for name, value in state_dict.items()
        if isinstance(value, Tensor)
    )
