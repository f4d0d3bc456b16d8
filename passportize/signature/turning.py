"""The least change of rows that puts their signature bits in: plain geometry, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from passportize.signature.response import reach_of
from passportize.signature.vectors import RawVectors, SignVectors

__all__ = ["moved_rows", "turned_rows"]

SPARE = 1.01
"""How far past the margin rows are taken, so that rounding leaves them there."""

ENOUGH = 0.999
"""Rows that reach so much of the margin stay as they are."""


def lacking_rows(
    gauge: Tensor, answer: Tensor, bits: Tensor, reach: float, length: Tensor
) -> Tensor:
    """Which rows do not carry their bits with the margin, bool; rows of zeros are left out.

    Args:
        gauge: ``w . s``, ``[rows]``.
        answer: ``w . t``.
        bits: -1 and +1.
        reach: The margin, in units of the length.
        length: ``|w|``.
    """
    now = torch.where(gauge < 0, -1.0, 1.0).to(gauge.dtype)
    enough = ENOUGH * reach * length
    lacking = (gauge.abs() < enough) | (now * bits * answer < enough)
    return lacking & (length > 0)


def turned_rows(rows: Tensor, vectors: SignVectors, bits: Tensor, margin: float) -> Tensor | None:
    """The nearest rows of the same lengths whose gauge and bit keep a margin.

    For each sign that the gauge may have there are two conditions, ``sign w . s >= m |w|`` and
    ``sign b w . t >= m |w|``. The nearest point of a sphere where one of them, or both, hold with
    equality is the row with that part set and the rest rescaled, a sum
    ``kept w + along_s s + along_t t``; of all that meet both conditions the nearest is taken.

    Args:
        rows: Float64 ``[channels, entries]``.
        vectors: Those of every row, as many entries as the rows have.
        bits: -1 and +1, float64 ``[channels]``.
        margin: Of the responses, in standard deviations.

    Returns:
        Rows ``[channels, entries]``, or None where all keep the margin. Rows of zeros stay.
    """
    s, t, _ = vectors.signs(rows.dtype)
    # Half of the entries of s and t differ, in all rows alike.
    shape = _Shape(rows.shape[1], float(rows.shape[1] % 2))
    reach = reach_of(margin, shape.entries)
    length = torch.linalg.vector_norm(rows, dim=1)
    gauge, answer = (rows * s).sum(1), (rows * t).sum(1)
    lacking = lacking_rows(gauge, answer, bits, reach, length)
    if not bool(lacking.any()):
        return None
    least = SPARE * reach * length
    best = torch.full_like(length, -torch.inf)
    chosen = [torch.ones_like(length), torch.zeros_like(length), torch.zeros_like(length)]
    for sign in (1.0, -1.0):
        sides = sign * least, sign * bits * least
        for candidate in (
            shape.with_gauge(gauge, answer, length, sides[0]),
            shape.with_answer(gauge, answer, length, sides[1]),
            shape.with_both(gauge, answer, length, *sides),
        ):
            kept, along_s, along_t = candidate
            new_gauge = kept * gauge + along_s * shape.entries + along_t * shape.product
            new_answer = kept * answer + along_s * shape.product + along_t * shape.entries
            slack = (1 - 1e-6) * least
            meets = (sign * new_gauge >= slack) & (sign * bits * new_answer >= slack)
            likeness = kept * length.square() + along_s * gauge + along_t * answer
            better = meets & (likeness > best)
            best = torch.where(better, likeness, best)
            chosen = [
                torch.where(better, new, old) for new, old in zip(candidate, chosen, strict=True)
            ]
    kept, along_s, along_t = (factor[:, None] for factor in chosen)
    turned = kept * rows + along_s * s + along_t * t
    turned = turned * (length / torch.linalg.vector_norm(turned, dim=1).clamp_min(1e-300))[:, None]
    return torch.where(lacking[:, None], turned, rows)


class _Shape(NamedTuple):
    """Length of the vectors and their product, and the candidates as factors of w, s and t."""

    entries: int
    product: float

    def with_gauge(
        self, gauge: Tensor, answer: Tensor, length: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``w . s`` as wanted."""
        kept = _rescaling(
            length.square() - wanted.square() / self.entries,
            length.square() - gauge.square() / self.entries,
        )
        return kept, (wanted - kept * gauge) / self.entries, torch.zeros_like(kept)

    def with_answer(
        self, gauge: Tensor, answer: Tensor, length: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``w . t`` as wanted."""
        kept, along_t, along_s = self.with_gauge(answer, gauge, length, wanted)
        return kept, along_s, along_t

    def with_both(
        self, gauge: Tensor, answer: Tensor, length: Tensor, wanted_s: Tensor, wanted_t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both as wanted: the two-dimensional system of equations."""
        kept = _rescaling(
            length.square() - self._in_plane(wanted_s, wanted_t),
            length.square() - self._in_plane(gauge, answer),
        )
        along_s, along_t = self._solve(wanted_s - kept * gauge, wanted_t - kept * answer)
        return kept, along_s, along_t

    def _solve(self, with_s: Tensor, with_t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of ``s`` and ``t`` in the vector of their plane with these products."""
        determinant = self.entries**2 - self.product**2
        return (
            (self.entries * with_s - self.product * with_t) / determinant,
            (self.entries * with_t - self.product * with_s) / determinant,
        )

    def _in_plane(self, with_s: Tensor, with_t: Tensor) -> Tensor:
        """Square length of the vector of their plane with these products."""
        along_s, along_t = self._solve(with_s, with_t)
        return along_s * with_s + along_t * with_t


def _rescaling(wanted: Tensor, present: Tensor) -> Tensor:
    return (wanted.clamp_min(0) / present.clamp_min(1e-300)).sqrt()


def moved_rows(rows: Tensor, vectors: RawVectors, bits: Tensor, margin: float) -> Tensor | None:
    """Rows as close as possible whose raw response keeps a margin on the side of the bit.

    Args:
        rows: Float64 ``[channels, entries]``.
        vectors: Those of the part; the gamma vector counts.
        bits: -1 and +1, float64 ``[channels]``.
        margin: Of the raw response ``u = w . s``.

    Returns:
        Rows ``[channels, entries]``, or None where all keep the margin.
    """
    gamma = vectors.values[..., 0].to(rows.dtype)
    each = gamma.expand(len(rows), -1) if gamma.dim() == 1 else _per_row(gamma, len(rows))
    answer = bits * (rows * each).sum(1)
    lacking = answer < ENOUGH * margin
    if not bool(lacking.any()):
        return None
    short = torch.where(lacking, SPARE * margin - answer, torch.zeros_like(answer))
    factor = short * bits / each.square().sum(1).clamp_min(1e-300)
    return rows + factor[:, None] * each


def _per_row(vectors: Tensor, rows: int) -> Tensor:
    return vectors.repeat_interleave(rows // len(vectors), dim=0)
