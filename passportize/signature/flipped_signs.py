"""Putting bits into freshly drawn rows by changing the signs of some entries, and nothing else.

Fresh entries are as likely negative as positive, whatever their sizes. A row times its vector ``s``
entry by entry is then a row of signs that says nothing of ``s``; which of them are changed is
decided by that product, the sizes and the mask ``s t`` alone. So the row that comes out, times
``s`` again, has signs that are fair coins to everybody who does not know ``s``: marked fresh
weights are distributed exactly as unmarked ones, in every respect and for any rule of choice, and
nobody can tell them apart. Turning a row (:mod:`passportize.signature.turning`) changes sizes too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.signature.response import reach_of
from passportize.signature.turning import SPARE, lacking_rows
from passportize.signature.vectors import SignVectors

__all__ = ["flipped_rows"]


def flipped_rows(rows: Tensor, vectors: SignVectors, bits: Tensor, margin: float) -> Tensor | None:
    """Rows that carry their bits with a margin, by changes of sign alone as far as these go.

    With ``x = w s``, and ``A`` and ``B`` the sums of ``x`` where ``s`` and ``t`` agree and where
    they do not, ``w . s = A + B`` and ``w . t = A - B``. For a bit of +1 both conditions are
    ``|A| - |B| >= m |w|``, for -1 the same with ``A`` and ``B`` exchanged. The larger sum is
    made longer, and if that does not do the smaller one shorter, by the largest entries first: few
    are changed, and not those that pruning takes away.

    Args:
        rows: Float64 ``[channels, entries]``.
        vectors: Those of every row, as many entries as the rows have.
        bits: -1 and +1, float64 ``[channels]``.
        margin: Of the responses, in standard deviations.

    Returns:
        Rows ``[channels, entries]``, or None where all keep the margin. Short rows may lack a part
        of it.
    """
    s, t, _ = vectors.signs(rows.dtype)
    reach = reach_of(margin, rows.shape[1])
    length = torch.linalg.vector_norm(rows, dim=1)
    lacking = lacking_rows((rows * s).sum(1), (rows * t).sum(1), bits, reach, length)
    if not bool(lacking.any()):
        return None
    # Where the sum that is to be the larger one runs.
    raised = (s * t) * bits[:, None] > 0
    least = SPARE * reach * length
    flipped = rows
    for chosen, longer in ((raised, True), (~raised, False)):
        products = flipped * s
        large, small = ((products * part).sum(1) for part in (raised, ~raised))
        missing = least - (large.abs() - small.abs())
        total = large if longer else small
        direction = torch.where(total < 0, -1.0, 1.0).to(rows.dtype)[:, None]
        against = (products * direction < 0) == longer
        gains = 2 * products.abs() * (chosen & against)
        if not longer:
            # Past zero the smaller sum would grow again.
            missing = torch.minimum(missing, small.abs())
        flipped = torch.where(_first(gains, missing, longer), -flipped, flipped)
    return torch.where(lacking[:, None], flipped, rows)


def _first(gains: Tensor, missing: Tensor, enough: bool) -> Tensor:
    """The gains that together make up for what is missing, bool ``[rows, entries]``.

    Args:
        gains: 0 where there is none.
        missing: ``[rows]``.
        enough: Whether the last one may go beyond: then the largest first; if not, the smallest.
    """
    ordered, order = gains.sort(1, descending=enough)
    sums = ordered.cumsum(1)
    taken = (sums - ordered if enough else sums) < missing[:, None]
    return torch.zeros_like(gains, dtype=torch.bool).scatter(1, order, taken) & (gains > 0)
