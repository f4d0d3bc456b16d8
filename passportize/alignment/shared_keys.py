"""Heads of queries that change places with others that meet the same keys and values.

Where several heads share keys (multi-query and grouped-query attention), nothing tells them apart
but where they lie: rows of queries and columns of what reads their outputs change places together,
keys and values stay. Which head is which is found as for other heads by the product of queries and
keys, or, where channels of queries are seen by themselves, by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.axes import BLANK, FIXED, Axis, SharedKeys
from passportize.alignment.channels import ChannelLabels
from passportize.alignment.groups import TiedGroup
from passportize.alignment.spaces import MatrixSpace, Side

__all__ = ["QueryHeads", "find_query_heads"]


@dataclass(frozen=True, eq=False)
class QueryHeads(TiedGroup):
    """Heads of queries that share keys: a group whose bundles are such heads.

    Attributes:
        queries: Rows of the queries, a block for each head.
        keys: Rows of the keys that they share, once for each head; None where no matrix can act on
            either.
    """

    queries: Side
    keys: Side | None


def find_query_heads(
    labels: ChannelLabels, axes: Sequence[Axis], spaces: Sequence[MatrixSpace], single: Tensor
) -> tuple[QueryHeads, ...]:
    """Heads of queries of a model that can change places while their keys stay.

    Args:
        labels: What a walk over the model has found.
        axes: Its axes, in the order of the forward pass.
        spaces: Its spaces.
        single: Class of atoms that move together where every head of queries does so by itself.
    """
    apart = labels.apart()
    staying = apart[FIXED]
    found: dict[tuple[int, ...], list[SharedKeys]] = {}
    for part in labels.shared:
        found.setdefault(tuple(part.scores.tolist()), []).append(part)
    units = []
    for parts in found.values():
        made = [part.outputs for part in parts]
        atoms = torch.cat([parts[0].queries, *made, parts[0].scores[:, None]], 1)
        if not bool((apart[atoms[atoms != BLANK]] == staying).any()):
            unit = _unit(parts[0], atoms, axes, spaces, single)
            if unit is not None:
                units.append(unit)
    return tuple(units)


def _unit(
    shared: SharedKeys,
    atoms: Tensor,
    axes: Sequence[Axis],
    spaces: Sequence[MatrixSpace],
    single: Tensor,
) -> QueryHeads | None:
    """The unit of heads with these atoms, ``[heads, atoms]``; None where it is not understood."""
    heads = [_ranks(row, single) for row in atoms]
    owned = torch.cat([classes for classes, _ in heads])
    if len(torch.unique(owned)) < len(owned):
        return None
    places = []
    for number, axis in enumerate(axes):
        if axis.role == "head":
            continue
        lying = [_lying(axis, *head, single) for head in heads]
        if not any(len(entries) for entries, _ in lying):
            continue
        # All have to lie in the same way.
        if not axis.moves or any(not torch.equal(ranks, lying[0][1]) for _, ranks in lying):
            return None
        places.append((number, torch.stack([entries for entries, _ in lying])))
    queries = _rows(shared.queries, axes, single)
    keys = _rows(shared.keys.expand(len(heads), -1), axes, single)
    if queries is None or keys is None:
        return None
    if not any(_meet(side, queries) for space in spaces for side in space.sides):
        keys = None
    return QueryHeads(len(heads), tuple(places), queries, keys)


def _meet(one: Side, other: Side) -> bool:
    return one.axis == other.axis and bool(torch.isin(other.places, one.places).all())


def _ranks(atoms: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
    """The classes of some atoms, ascending, and at which of the atoms each stands first."""
    classes, at = torch.unique(single[atoms[atoms != BLANK]], return_inverse=True)
    first = torch.full((len(classes),), len(at))
    return classes, first.scatter_reduce(0, at, torch.arange(len(at)), "amin")


def _lying(axis: Axis, classes: Tensor, ranks: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of an axis that are of some classes, in the order of their ranks, and these."""
    of = single[axis.atoms]
    entries = torch.isin(of, classes).nonzero()[:, 0]
    found = ranks[torch.searchsorted(classes, of[entries])]
    order = torch.argsort(found, stable=True)
    return entries[order], found[order]


def _rows(atoms: Tensor, axes: Sequence[Axis], single: Tensor) -> Side | None:
    """The rows of the weight that makes the channels of heads, ``[heads, channels]``."""
    heads = [_ranks(row, single) for row in atoms]
    for number, axis in enumerate(axes):
        if axis.role == "rows" and axis.moves:
            lying = [_lying(axis, *head, single)[0] for head in heads]
            if all(len(entries) == atoms.shape[1] for entries in lying):
                return Side(number, torch.stack(lying)[..., None], True)
    return None
