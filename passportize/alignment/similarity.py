"""Are aligned weights those of the released model? A test on entries that the alignment never saw.

Null hypothesis: which row of the suspect was matched to which row of the released weights is
arbitrary. Matching used a quarter of the entries of every weight; the statistic is the mean
correlation of matched rows over the others, with the sign that the quarter gave. Under the
null hypothesis it is distributed as with any other matching, so with ``N`` random ones the
probability of one as high is at most ``(1 + how many are as high) / (N + 1)``, exact and never
smaller than ``1 / (N + 1)``.

Small p-values say that two models have *something* in common, and so may two that were trained on
the same data. Therefore the excess over random matchings must be large as well: copies have most of
their weights in common, strangers little. Two models that come from one ancestor have the ancestor
in common. Where it is known it is taken out of both, and what is compared is what each of them was
changed by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.held_out import HeldOut, correlations, some_columns
from passportize.alignment.tied_channels import TiedChannels
from passportize.thresholds import LINK_LIKENESS, LINK_P_VALUE

__all__ = ["MATCHINGS", "Similarity", "matched_rows", "measure_similarity"]

MATCHINGS = 1_999
"""Random matchings that are tried."""

_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Similarity:
    """How alike the aligned suspect and the released weights are.

    Attributes:
        likeness: Mean correlation ``r`` of matched rows over entries that were kept out of the
            fit, beyond that of random matchings: ``(r - chance) / (1 - chance)``; 1 for a copy,
            about 0 for a stranger.
        chance: The mean correlation over random matchings. Rows of one layer resemble each other.
        p_value: Share of random matchings that are as high, the found one counted among them.
        matchings: How many random matchings were tried.
        rows: How many rows were compared; 0 where nothing could be tested.
    """

    likeness: float
    chance: float
    p_value: float
    matchings: int
    rows: int

    @property
    def accepted(self) -> bool | None:
        """Whether both thresholds are met; None if nothing could be tested."""
        if not self.rows:
            return None
        return self.likeness >= LINK_LIKENESS and self.p_value <= LINK_P_VALUE


def measure_similarity(
    released: Mapping[str, Tensor],
    aligned: Mapping[str, Tensor],
    tied: TiedChannels,
    matchings: int = MATCHINGS,
    base: Mapping[str, Tensor] | None = None,
    held_out: HeldOut | None = None,
    absent: Mapping[str, Tensor] | None = None,
) -> Similarity:
    """Test aligned weights against the released ones.

    Args:
        released: The owner's plain weights by first name.
        aligned: Those of the suspect, from :func:`passportize.alignment.alignment.align`.
        tied: The channels of the model.
        matchings: Random matchings to compare with.
        base: Tensors of a common ancestor, by first name, to be taken out of both: every row less
            the best multiple of the ancestor's, since sizes are known no better than to a few
            percent. Those that it lacks are compared as they are.
        held_out: What the alignment did not look at, as it was told.
        absent: Entries that the suspect has no part in, bool by name; they are not compared, nor
            are rows of which it has nothing.
    """
    base, absent = base or {}, absent or {}
    if held_out is None:
        held_out = HeldOut(tied, {name: tensor.shape for name, tensor in released.items()})
    tables = []
    rows = 0
    for size, places_on in matched_rows(tied, released, held_out):
        table = torch.zeros(size, size)
        tested = 0
        there = torch.zeros(size, dtype=torch.bool)
        for number, places in places_on:
            axis = tied.axes[number]
            own = released[axis.tensor]
            gone = absent.get(axis.tensor)
            if gone is not None:
                own = own.masked_fill(gone, 0)
                there |= ~axis.entries(gone, places).flatten(1).all(1).view(size, -1).all(1)
            else:
                there[:] = True
            whole = own, aligned[axis.tensor], held_out.fitted(axis.tensor)
            parts = [axis.entries(tensor, places).flatten(1) for tensor in whole]
            if axis.tensor in base:
                past = axis.entries(base[axis.tensor], places).flatten(1).float()
                parts[:2] = (_beyond(part.float(), past) for part in parts[:2])
            for entry in range(places.shape[1]):
                mine, other, chosen = (part[entry :: places.shape[1]] for part in parts)
                table += _held_out(mine, other, chosen)
                tested += 1
        if bool(there.any()):
            tables.append(table[there][:, there])
            rows += tested * int(there.sum())
    if not rows:
        return Similarity(0.0, 0.0, 1.0, 0, 0)
    found = sum(float(table.diagonal().sum()) for table in tables) / rows
    others = _random_matchings(tables, matchings) / rows
    chance = float(others.mean())
    # Sums are made in another order, so a matching that is the found one may differ in rounding.
    higher = int((others >= found - 1e-6).sum())
    likeness = (found - chance) / max(1.0 - chance, 1e-9)
    return Similarity(likeness, chance, (1 + higher) / (matchings + 1), matchings, rows)


def matched_rows(
    tied: TiedChannels, released: Mapping[str, Tensor], held_out: HeldOut
) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
    """Rows that an alignment lays on each other and did not look at all of.

    Rows that nothing can have moved lie on each other as they are, and count as well.

    Yields:
        How many rows they are, and the numbers of the axes on which they lie with their places.
    """
    movable = {
        *(axis for group in tied.groups for axis, _ in group.places),
        *(side.axis for space in tied.spaces for side in space.sides),
    }
    found: list[tuple[int, list[tuple[int, Tensor]]]] = [
        (group.size, list(group.places))
        for number, group in enumerate(tied.groups)
        if number not in tied.replaced
    ]
    found += [
        (space.size, [(side.axis, side.places[0]) for side in space.sides if side.writes])
        for space in tied.spaces
        if space.blocks == 1
    ]
    for number, axis in enumerate(tied.axes):
        count = len(axis.atoms)
        if number in movable or axis.role != "rows" or not axis.moves or axis.first:
            continue
        if count > 1 and count == released[axis.tensor].shape[axis.dim]:
            found.append((count, [(number, torch.arange(count)[:, None])]))
    for size, places_on in found:
        rows = [
            (number, places)
            for number, places in places_on
            if tied.axes[number].role == "rows" and held_out.compared(tied.axes[number].tensor)
        ]
        if rows:
            yield size, rows


def _beyond(rows: Tensor, past: Tensor) -> Tensor:
    """Rows less the best multiple of the ancestor's, ``[n, D]``; as they are where that is zero."""
    length = past.square().sum(1, keepdim=True)
    share = (rows * past).sum(1, keepdim=True) / length.masked_fill(length == 0, 1)
    return torch.addcmul(rows, share, past, value=-1)


def _held_out(own: Tensor, other: Tensor, fitted: Tensor) -> Tensor:
    """Correlation over what was kept out, with the sign of what was fitted."""
    own, other = own.float(), other.float()
    mine, others, chosen = some_columns(own, other, fitted)
    opposite = (mine * chosen) @ others.t() < 0
    # Columns of very wide layers are picked anew: those above may all have been fitted.
    found = correlations(*some_columns(own, other, ~fitted))[0]
    return torch.where(opposite, -found, found)


def _random_matchings(tables: list[Tensor], count: int) -> Tensor:
    """The statistic of random matchings, ``[count]``; every group is permuted by itself."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    sums = torch.zeros(count, dtype=torch.float64)
    for table in tables:
        size, columns = len(table), table.t()
        for start in range(0, count, max(1, _AT_ONCE // size)):
            stop = min(count, start + max(1, _AT_ONCE // size))
            draws = torch.rand(stop - start, size, generator=generator)
            # NumPy sorts short rows several times faster.
            orders = torch.from_numpy(draws.numpy().argsort(axis=1))
            sums[start:stop] += columns.gather(0, orders).sum(1, dtype=torch.float64)
    return sums
