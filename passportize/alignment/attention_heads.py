"""Which head of attention is which, whatever matrices act inside them.

Queries and keys of a head are known by their product, values by the subspace that they span: no
matrix inside the head changes either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.alignment.spaces import MatrixKind, Side
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["HeadFeatures", "match_heads"]

Features = tuple[Tensor, Tensor]
"""Of the released weights and of the suspect, ``[heads, size, features]`` each."""


class HeadFeatures:
    """The groups of a model that are heads with matrices on them.

    Args:
        tied: The channels of the model.
    """

    def __init__(self, tied: TiedChannels) -> None:
        self._parts: dict[int, list[tuple[Side, Side | None]]] = {}
        self._bundles: dict[int, Tensor] = {}
        spaces = [
            space
            for space in tied.spaces
            if space.group is None and space.blocks > 1 and space.kind is not MatrixKind.ROTARY
        ]
        of_heads = {side.axis for space in spaces for side in space.sides}
        entries = {
            (axis, entry): (number, bundle)
            for number, group in enumerate(tied.groups)
            for axis, places in group.places
            if axis in of_heads
            for bundle, row in enumerate(places.tolist())
            for entry in row
        }
        for space in spaces:
            sides = [side for side in space.sides if self._is_rows(tied, side)]
            writes = next((side for side in sides if side.writes), None)
            reads = next((side for side in sides if not side.writes), None)
            if writes is None:
                continue
            found = [entries.get((writes.axis, int(e))) for e in writes.places[:, 0, 0]]
            if any(place is None for place in found):
                continue
            numbers = {place[0] for place in found if place is not None}
            if len(numbers) != 1:
                continue
            number = numbers.pop()
            self._parts.setdefault(number, []).append((writes, reads))
            self._bundles[number] = torch.tensor([place[1] for place in found if place])
        for number, unit in enumerate(tied.query_heads, len(tied.groups)):
            if unit.keys is not None:
                self._parts[number] = [(unit.queries, unit.keys)]
                self._bundles[number] = torch.arange(unit.size)

    @staticmethod
    def _is_rows(tied: TiedChannels, side: Side) -> bool:
        return tied.axes[side.axis].role == "rows"

    def of_group(self, number: int) -> list[tuple[Side, Side | None]]:
        """Queries and keys, and values with nothing beside them, of a group; empty for others.

        Heads of queries that share keys are counted behind the groups.
        """
        return self._parts.get(number, [])

    def in_bundles(self, number: int, score: Tensor) -> Tensor:
        """A table of heads as one of the bundles of a group."""
        bundles = self._bundles[number]
        result = torch.zeros_like(score)
        result[bundles[:, None], bundles[None, :]] = score
        return result


def match_heads(first: Features, second: Features | None) -> Tensor:
    """How alike every head of the released weights is to every head of the suspect, ``[h, h]``.

    Args:
        first: Queries, or values.
        second: Keys; None for values.

    Computed in the precision of what is given.
    """
    if second is None:
        own, other = (_basis(part) for part in first)
        size, count = own.shape[1], own.shape[2]
        overlap = torch.einsum("adf,bef->abde", own, other).square().sum((2, 3))
        chance = size * size / count
        return ((overlap - chance) / max(size - chance, 1e-9)).float()
    own_first, other_first, own_second, other_second = map(_in_one_unit, (*first, *second))

    def product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        one = torch.einsum("adf,bef->abde", a, b)
        two = torch.einsum("adf,bef->abde", c, d)
        return (one * two).sum((2, 3), dtype=torch.float64)

    found = product(own_first, other_first, own_second, other_second)
    lengths = [
        (a @ a.mT * (b @ b.mT)).sum((1, 2), dtype=torch.float64).clamp_min(1e-30).sqrt()
        for a, b in ((own_first, own_second), (other_first, other_second))
    ]
    return (found / (lengths[0][:, None] * lengths[1][None, :])).float()


def _in_one_unit(rows: Tensor) -> Tensor:
    """Rows of heads as shares of the longest: products of four stay in single precision."""
    size = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float64).max().clamp_min(1e-300)
    shares: Tensor = rows / size
    return shares


def _basis(rows: Tensor) -> Tensor:
    """An orthonormal basis of what the rows of each head span."""
    basis: Tensor = torch.linalg.qr(rows.transpose(1, 2))[0].transpose(1, 2)
    return basis
