"""Which matrix leads from the channels of one model to those of the other.

With ``X`` what writes a space in the released model and ``X'`` in the suspect, ``X' = M X``; with
``Y`` and ``Y'`` what reads it, ``Y = M^T Y'``. Rotations are found by Procrustes (the polar factor
of ``X' X^T + Y' Y^T``; Schönemann 1966), other matrices by least squares: the normal equations
``M (X X^T) + (Y' Y'^T) M = X' X^T + Y' Y^T`` are a Sylvester equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.spaces import MatrixKind

__all__ = ["Pair", "find_matrices", "inverse_of"]

_RIDGE = 1e-6
_SMALLEST = 1e-4


@dataclass(frozen=True, eq=False)
class Pair:
    """What both models have along one side of a space, ``[blocks, size, features]``.

    Attributes:
        own: Of the released model.
        other: Of the suspect.
        writes: Whether it writes the space.
    """

    own: Tensor
    other: Tensor
    writes: bool


def find_matrices(kind: MatrixKind, pairs: Sequence[Pair]) -> Tensor:
    """The matrices ``M`` of a space, float64 ``[blocks, size, size]``.

    Args:
        kind: Which matrices may act.
        pairs: What to find them from; at least one.
    """
    blocks, size, _ = pairs[0].own.shape
    products = torch.zeros(blocks, size, size, dtype=torch.float64)
    before, after = products.clone(), products.clone()
    for pair in pairs:
        own, other = pair.own.double(), pair.other.double()
        if kind is MatrixKind.LINEAR:
            # One unit for both, since the matrix says how large the one is in the other.
            weight = 1.0 / (own if pair.writes else other).square().mean().clamp_min(1e-30)
        else:
            weight = 1.0 / (own.square().mean() * other.square().mean()).sqrt().clamp_min(1e-30)
        products += weight * other @ own.transpose(1, 2)
        if pair.writes:
            before += weight * own @ own.transpose(1, 2)
        else:
            after += weight * other @ other.transpose(1, 2)
    # Numbers at the end of their range leave nothing to be found.
    products, before, after = (part.nan_to_num(0.0, 0.0, 0.0) for part in (products, before, after))
    if kind is not MatrixKind.LINEAR:
        left, _, right = torch.linalg.svd(products)
        rotations: Tensor = left @ right
        return _keeping_ones(rotations) if kind is MatrixKind.CENTRED else rotations
    found = [_solved(*block) for block in zip(before, after, products, strict=True)]
    return torch.stack(found).nan_to_num(0.0, 0.0, 0.0)


def _solved(before: Tensor, after: Tensor, products: Tensor) -> Tensor:
    size = len(products)
    trace = before.trace() + after.trace()
    before = before + torch.eye(size, dtype=torch.float64) * trace / size * _RIDGE
    if not bool(after.any()):
        solution: Tensor = torch.linalg.solve(before, products, left=False)
        return solution
    # Here, because importing scipy takes longer than the rest of passportize together.
    from scipy.linalg import solve_sylvester

    return torch.from_numpy(solve_sylvester(after.numpy(), before.numpy(), products.numpy()))


def _keeping_ones(rotations: Tensor) -> Tensor:
    """Rotations of what is centred, with the vector of ones kept as it is."""
    size = rotations.shape[-1]
    centre = torch.eye(size, dtype=torch.float64) - 1.0 / size
    return centre @ rotations @ centre + 1.0 / size


def inverse_of(matrices: Tensor) -> Tensor:
    """The inverses, with directions left out that the matrices all but lose."""
    inverses: Tensor = torch.linalg.pinv(matrices, rtol=_SMALLEST)
    return inverses
