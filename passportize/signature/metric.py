"""In which directions a trained layer's rows change.

With ``S`` the second moment of a layer's inputs in units of the mean of its eigenvalues, and a
*level* ``l`` in the same units, a change is priced by the inverse of

    P = 4 l S (S + l)^-2

which is 1 in the directions where inputs have the size of the level, and falls to both sides. What
a thief leaves of a vector who takes away what inputs do not use is about

    U = S^2 (S + l)^-2
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Metric"]


class Metric:
    """The inputs of one weight.

    Args:
        moment: Their second moment, of what a row is multiplied with, float64
            ``[entries, entries]``.
    """

    def __init__(self, moment: Tensor) -> None:
        self.moment = moment
        mean = float(moment.diagonal().mean())
        self._scaled = moment / mean if mean > 0 else torch.zeros_like(moment)
        self._factor: tuple[float, Tensor, float] | None = None

    def parts(self, rows: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """``P`` and ``U`` of each row.

        Args:
            rows: ``[..., entries]``.
            level: ``l``, in units of the mean of the eigenvalues; one that drowns in the rounding
                of the moment is raised above it.
        """
        if self._factor is None or self._factor[0] != level:
            self._factor = level, *self._factored(level)
        _, factor, level = self._factor
        # Powers of R = (S + l)^-1: P is 4 l R (1 - l R) and U is (1 - l R)^2.
        columns = rows.flatten(0, -2).t()
        once = torch.cholesky_solve(columns, factor)
        twice = torch.cholesky_solve(once, factor)
        directed = 4 * level * (once - level * twice)
        used = columns - 2 * level * once + level**2 * twice
        return directed.t().view(rows.shape), used.t().view(rows.shape)

    def _factored(self, level: float) -> tuple[Tensor, float]:
        """The Cholesky factor of ``S + l``, and the level that it is of."""
        while True:
            whole = self._scaled.clone()
            whole.diagonal().add_(level)
            factor, failed = torch.linalg.cholesky_ex(whole)
            if not bool(failed):
                return factor, level
            level *= 10

    def output(self, rows: Tensor) -> float:
        """The second moment of what rows compute, summed over them."""
        return float(((rows @ self.moment) * rows).sum())
