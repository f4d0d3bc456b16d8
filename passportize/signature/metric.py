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
        self._factor: tuple[float, Tensor] | None = None

    def lessened(self, rows: Tensor, level: float) -> Tensor:
        """``(S + l)^-1`` of each row.

        Args:
            rows: ``[..., entries]``.
            level: ``l``, in units of the mean of the eigenvalues.
        """
        if self._factor is None or self._factor[0] != level:
            whole = self._scaled.clone()
            whole.diagonal().add_(level)
            self._factor = level, torch.linalg.cholesky(whole)
        columns = rows.flatten(0, -2).t()
        solved: Tensor = torch.cholesky_solve(columns, self._factor[1])
        return solved.t().view(rows.shape)

    def output(self, rows: Tensor) -> float:
        """The second moment of what rows compute, summed over them."""
        return float(((rows @ self.moment) * rows).sum())
