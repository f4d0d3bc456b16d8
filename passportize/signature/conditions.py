"""The conditions that bits put on rows, and the cheapest change that meets them.

For each sign of the gauge a row has four of them: ``sign w . s >= m |w|`` and ``sign b w . t >= m
|w|`` on the whole of it, and the same on ``U w``, what of it the inputs use. Any of them may hold
with equality; of all sets of them the cheapest change that meets the others as well is taken.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from passportize.signature.metric import Metric
from passportize.signature.turning import ENOUGH, SPARE

__all__ = ["Conditions"]

_STEPS = 20
"""Steps in which the length of a row, which the margin is a multiple of, settles."""

_JITTER = 1e-9
"""Of the mean of a system's diagonal: where inputs use every direction alike, two conditions are
one."""

_SLACK = 0.9999
"""Part of a condition that rounding may leave open; :data:`SPARE` is more than it takes."""


class Conditions:
    """Those of some rows at a level.

    Args:
        rows: As they are read, float64 ``[rows, entries]``.
        planes: ``V = [s t]``, ``[2, rows, entries]``.
        bits: -1 and +1, ``[rows]``.
        reach: The margin, in units of the length of the window.
        metric: In which directions rows change.
        level: The level.
        window: In which entries a row is read.
        centred: Whether less its mean.
        used: Whether all four must be met, or those on the whole of a row only.
    """

    _left: Tensor | None

    def __init__(
        self,
        rows: Tensor,
        planes: Tensor,
        bits: Tensor,
        reach: float,
        metric: Metric,
        level: float,
        window: slice | None,
        centred: bool,
        used: bool,
    ) -> None:
        self._rows, self._reach, self._window = rows, reach, window
        self._centred = centred
        # sign w . s and sign b w . t; if used, the same of U w.
        self._bits = torch.stack([torch.ones_like(bits), bits], dim=1)
        self._read, self._left = planes, None
        if not used:
            self._directed = metric.parts(planes, level)[0]
            return
        directed, left = metric.parts(torch.cat([planes, rows[None]]), level)
        self._bits = self._bits.repeat(1, 2)
        self._read = torch.cat([planes, left[:2]])
        self._directed = torch.cat([directed[:2], metric.parts(left[:2], level)[0]])
        # Nobody checks what inputs use, so its length is that before the change.
        self._left = self._length(self._plain(left[2]))

    def _plain(self, rows: Tensor) -> Tensor:
        """Less their means, where they are read so."""
        return rows - rows.mean(-1, keepdim=True) if self._centred else rows

    def _length(self, rows: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(rows[:, self._window], dim=1)
        return length

    def _least(self, length: Tensor) -> Tensor:
        """What the products must reach, ``[rows, conditions]``."""
        lengths = [length, length]
        if self._left is not None:
            lengths += [self._left, self._left]
        return self._reach * torch.stack(lengths, dim=1)

    def solved(self, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """What to add, which rows need it, and which of them settled at the margin.

        Args:
            floor: What ``P`` has in every direction.
        """
        rows, read, bits = self._rows, self._read, self._bits
        directed = self._plain(self._directed + floor * read)
        inner = torch.einsum("ace,bce->cab", read, directed)
        products = torch.einsum("ace,ce->ca", read, rows)
        cheapest = _Cheapest(products, inner, bits)
        length = self._length(rows)
        least = self._least(length)
        lacking = (length > 0) & ~_kept(bits * products, ENOUGH * least)
        added, settled = torch.zeros_like(rows), ~lacking
        for _ in range(_STEPS):
            factors = cheapest.factors(SPARE * least)
            added = torch.einsum("ca,ace->ce", factors, directed)
            least = self._least(self._length(rows + added))
            got = products + torch.einsum("cab,cb->ca", inner, factors)
            settled = _kept(bits * got, least)
            if bool(settled[lacking].all()):
                break
        return added, lacking, settled


def _kept(right: Tensor, least: Tensor) -> Tensor:
    """Which rows meet all their conditions, with one sign or the other."""
    return (right >= least).all(1) | (-right >= least).all(1)


class _Cheapest:
    """The cheapest change that meets the conditions of each row.

    Args:
        products: ``V' w`` now, ``[rows, conditions]``.
        inner: ``V' P V``, ``[rows, conditions, conditions]``.
        bits: The sign that each product must have, or the other one all of them, likewise.
    """

    def __init__(self, products: Tensor, inner: Tensor, bits: Tensor) -> None:
        self._products, self._inner = products, inner
        self._signs = torch.stack([bits, -bits])
        count = products.shape[1]
        subsets = list(itertools.product((0.0, 1.0), repeat=count))
        self._sets = torch.tensor(subsets, dtype=products.dtype, device="cpu")
        both = self._sets[:, None, :, None] * self._sets[:, None, None, :]
        even = _JITTER * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
        alone = (
            torch.diag_embed(1 - self._sets)[:, None]
            + torch.eye(count, dtype=products.dtype, device="cpu") * even[:, None, None]
        )
        self._inverses = torch.linalg.inv_ex(inner * both + alone)[0]

    def factors(self, least: Tensor) -> Tensor:
        """Factors of the columns of ``P V``, ``[rows, conditions]``.

        Args:
            least: What each product must reach, ``[rows, conditions]``.
        """
        short = self._signs * least - self._products
        wanted = short[:, None] * self._sets[:, None]
        found = torch.einsum("snab,zsnb->zsna", self._inverses, wanted)
        moved = torch.einsum("nab,zsnb->zsna", self._inner, found)
        reached = self._signs[:, None] * (self._products + moved)
        cost = (found * moved).sum(-1)
        cost = cost.masked_fill(~(reached >= _SLACK * least).all(-1), torch.inf).flatten(0, 1)
        best = cost.argmin(0)
        chosen = found.flatten(0, 1)[best, torch.arange(len(best), device="cpu")]
        return chosen.masked_fill(cost.min(0).values.isinf()[:, None], 0)
