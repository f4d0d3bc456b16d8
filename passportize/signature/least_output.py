"""The least change of a layer's output that puts signature bits into its rows.

A row that carries a bit has to answer to its vectors ``V = [s t]``; what its layer computes moves
by the products of the row's change and the layer's inputs. With ``S`` the second moment of these
inputs and ``d`` what is missing, the change ``dw`` with ``V' dw = d`` that costs least, ``dw' S
dw``, is

    dw = S^-1 V (V' S^-1 V)^-1 d

(least squares under linear constraints; the same step prunes weights in "Optimal Brain Surgeon",
NeurIPS 1992). Directions that the inputs hardly use cost little, so a multiple of the identity is
added to ``S``: it says how much of the change may hide there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from passportize.signature.response import reach_of
from passportize.signature.turning import SPARE, lacking_rows
from passportize.signature.vectors import SignVectors

__all__ = ["Metric", "least_output_rows"]

_BLOCK = 256
"""Rows that are solved for at a time."""

_STEPS = 40
"""Steps in which the length of a row, which the margin is a multiple of, settles."""

_STIFFER = 4.0
"""Where that does not do, the multiple of the identity is so many times as large."""

_TRIES = 12


class Metric(NamedTuple):
    """What a change of a row costs.

    Attributes:
        moment: Second moment of the inputs that a row is multiplied with, float64
            ``[entries, entries]``.
        ridge: What is added to its diagonal, in units of the mean of the diagonal.
    """

    moment: Tensor
    ridge: float

    def inverse(self, vectors: Tensor, stiffer: float = 1.0) -> Tensor:
        """``S^-1 V``, with a larger ridge where rounding has left less of ``S`` than nothing.

        Args:
            vectors: ``[entries, columns]``.
            stiffer: Factor of the ridge.
        """
        size = len(self.moment)
        mean = float(self.moment.diagonal().mean())
        added = self.ridge * stiffer * (mean if mean > 0 else 1.0)
        identity = torch.eye(size, dtype=self.moment.dtype, device="cpu")
        factor, failed = torch.linalg.cholesky_ex(self.moment + added * identity)
        # No rounding is as large as the sum of all eigenvalues.
        while failed and added < size * mean:
            added *= _STIFFER
            factor, failed = torch.linalg.cholesky_ex(self.moment + added * identity)
        return torch.cholesky_solve(vectors, factor)


def least_output_rows(
    rows: Tensor,
    vectors: SignVectors,
    bits: Tensor,
    margin: float,
    metric: Metric,
    centred: bool = False,
) -> Tensor | None:
    """Rows that answer with their bits, at the least change of what the layer computes.

    For each sign of the gauge there are two conditions, ``sign w . s >= m |w|`` and ``sign b w . t
    >= m |w|``, with ``|w|`` the length of the window after the change. The cheapest change lets one
    of them, or both, hold with equality.

    Args:
        rows: Rows that carry bits, as they are read, float64 ``[rows, entries]``: whole rows, or a
            run of their entries that has the window in it, with its offset counted from there.
        vectors: Of these rows.
        bits: -1 and +1, float64 ``[rows]``.
        margin: Of the responses, in standard deviations.
        metric: What a change of these entries costs.
        centred: Whether the mean of a row is taken from it before it is read, so that a change has
            to be read in the same way.

    Returns:
        What to add to the rows, ``[rows, entries]``, or None where all keep the margin. Rows whose
        window is zero stay.
    """
    window = vectors.window
    reach = reach_of(margin, vectors.entries)
    signs = vectors.signs(rows.dtype)[:2]
    read = rows[:, window]
    length = torch.linalg.vector_norm(read, dim=1)
    gauge, answer = (read * signs[0]).sum(1), (read * signs[1]).sum(1)
    lacking = lacking_rows(gauge, answer, bits, reach, length)
    if not bool(lacking.any()):
        return None
    added = torch.zeros_like(rows)
    todo = lacking.nonzero().flatten()
    stiffer = 1.0
    for _ in range(_TRIES):
        left = []
        for part in torch.split(todo, _BLOCK):
            found, settled = _turned(
                rows[part], signs[:, part], bits[part], reach, metric, window, stiffer, centred
            )
            added[part[settled]] = found[settled]
            left.append(part[~settled])
        todo = torch.cat(left)
        if not len(todo):
            break
        stiffer *= _STIFFER
    return added


def _turned(
    rows: Tensor,
    signs: Tensor,
    bits: Tensor,
    reach: float,
    metric: Metric,
    window: slice | None,
    stiffer: float,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """What puts the bits into rows, and which of them settled at the margin."""
    count, entries = rows.shape
    planes = torch.zeros(2, count, entries, dtype=rows.dtype, device="cpu")
    planes[:, :, window] = signs
    if centred:
        planes -= planes.mean(2, keepdim=True)
    solved = metric.inverse(planes.flatten(0, 1).t(), stiffer).t().view(2, count, entries)
    # V' S^-1 V of every row, [rows, 2, 2].
    inner = torch.einsum("ace,bce->cab", planes, solved)
    products = torch.einsum("ace,ce->ca", planes, rows)
    present = torch.linalg.vector_norm(rows[:, window], dim=1)
    length = present.clone()
    for _ in range(_STEPS):
        missing = _cheapest(products, inner, bits, SPARE * reach * length)
        added = torch.einsum("ca,ace->ce", missing, solved)
        changed = rows + added - added.mean(1, keepdim=True) if centred else rows + added
        now = torch.linalg.vector_norm(changed[:, window], dim=1)
        gauge, answer = torch.einsum("ace,ce->ac", planes, changed)
        sign = torch.where(gauge < 0, -1.0, 1.0).to(rows.dtype)
        settled = torch.minimum(gauge.abs(), sign * bits * answer) >= reach * now
        if bool(settled.all()):
            break
        length = now
    return added, settled


def _cheapest(products: Tensor, inner: Tensor, bits: Tensor, least: Tensor) -> Tensor:
    """Factors of the two columns of ``S^-1 V`` in the cheapest change, ``[rows, 2]``.

    Args:
        products: ``w . s`` and ``w . t`` now, ``[rows, 2]``.
        inner: ``V' S^-1 V``, ``[rows, 2, 2]``.
        bits: ``[rows]``.
        least: What gauge and bit must reach, ``[rows]``.
    """
    determinant = inner[:, 0, 0] * inner[:, 1, 1] - inner[:, 0, 1].square()
    best = torch.full_like(least, torch.inf)
    chosen = torch.zeros_like(products)
    for sign in (1.0, -1.0):
        target = torch.stack([sign * least, sign * bits * least], dim=1)
        short = target - products
        both = (
            torch.stack(
                [
                    inner[:, 1, 1] * short[:, 0] - inner[:, 0, 1] * short[:, 1],
                    inner[:, 0, 0] * short[:, 1] - inner[:, 0, 1] * short[:, 0],
                ],
                dim=1,
            )
            / determinant[:, None]
        )
        zero = torch.zeros_like(least)
        gauge_only = torch.stack([short[:, 0] / inner[:, 0, 0], zero], dim=1)
        answer_only = torch.stack([zero, short[:, 1] / inner[:, 1, 1]], dim=1)
        for factors in (torch.zeros_like(both), gauge_only, answer_only, both):
            reached = products + torch.einsum("cab,cb->ca", inner, factors)
            slack = (1 - 1e-9) * least
            meets = (sign * reached[:, 0] >= slack) & (sign * bits * reached[:, 1] >= slack)
            cost = torch.einsum("ca,cab,cb->c", factors, inner, factors)
            better = meets & (cost < best)
            best = torch.where(better, cost, best)
            chosen = torch.where(better[:, None], factors, chosen)
    return chosen
