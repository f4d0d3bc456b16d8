"""Which matrix leads from the channels of one model to those of the other.

With ``X`` what writes a space in the released model and ``X'`` in the suspect, ``X' = M X``; with
``Y`` and ``Y'`` what reads it, ``Y = M^T Y'``. Rotations are found by Procrustes (the polar factor
of ``X' X^T + Y' Y^T``; Schönemann 1966), other matrices by least squares: the normal equations
``M (X X^T) + (Y' Y'^T) M = X' X^T + Y' Y^T`` are a Sylvester equation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.spaces import MatrixKind

__all__ = ["Pair", "explain", "find_matrices", "inverse_of"]

_RIDGE = 1e-6
_SMALLEST = 1e-4

_TINY = 1e-20
"""Length times length from which on products of single precision are computed in it."""

_ENOUGH = 64
"""Features for each channel that tell whether a matrix is exact, where there are more."""

_EXACT = 1e-4
"""Share of a side that rounding may leave unexplained."""


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
        if kind.rotates:
            sizes = (_length(pair.own) * _length(pair.other)).clamp_min(1e-30)
            products += _products(pair, float(sizes)) * (pair.own.numel() / sizes)
            continue
        own, other = pair.own.double(), pair.other.double()
        # One unit for both, since the matrix says how large the one is in the other.
        weight = 1.0 / (own if pair.writes else other).square().mean().clamp_min(1e-30)
        products += weight * (other @ own.mT)
        if pair.writes:
            before += weight * (own @ own.mT)
        else:
            after += weight * (other @ other.mT)
    # Numbers at the end of their range leave nothing to be found.
    products, before, after = (part.nan_to_num(0.0, 0.0, 0.0) for part in (products, before, after))
    if kind.rotates:
        if kind is MatrixKind.CENTRED:
            # What is centred says nothing of the vector of ones, which goes to itself, and must not
            # be mixed with another direction of which nothing is said.
            products = products + torch.linalg.matrix_norm(products)[:, None, None] / size
        left, _, right = torch.linalg.svd(products)
        rotations: Tensor = left @ right
        return _keeping_ones(rotations) if kind is MatrixKind.CENTRED else rotations
    solved = _solved(before, after, products).nan_to_num(0.0, 0.0, 0.0)
    return _turning(solved) if kind is MatrixKind.ROTARY else solved


def _products(pair: Pair, sizes: float) -> Tensor:
    """``X' X^T``, float64. A rotation is no less exact than the precision that both come in."""
    if sizes > _TINY:
        found = (pair.other @ pair.own.mT).double()
        if bool(found.isfinite().all()):
            return found
    return pair.other.double() @ pair.own.double().mT


def _length(values: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return length


def explain(matrices: Tensor, pairs: Sequence[Pair]) -> bool:
    """Whether matrices turn the one model into the other everywhere, but for rounding."""
    for pair in _some(pairs):
        if pair.writes:
            wanted, found = pair.other, matrices.to(pair.own) @ pair.own
        else:
            wanted, found = pair.own, matrices.mT.to(pair.other) @ pair.other
        if not bool((wanted - found).norm() <= _EXACT * wanted.norm()):
            return False
    return True


def _some(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Columns of all sides, drawn where there are very many."""
    share = _ENOUGH * pairs[0].own.shape[1] / sum(pair.own.shape[2] for pair in pairs)
    generator = torch.Generator().manual_seed(0)
    for pair in pairs:
        if share < 1:
            features = pair.own.shape[2]
            drawn = torch.randperm(features, generator=generator)[: math.ceil(share * features)]
            pair = Pair(pair.own[:, :, drawn], pair.other[:, :, drawn], pair.writes)
        yield pair


def _solved(before: Tensor, after: Tensor, products: Tensor) -> Tensor:
    """The ``M`` with ``M before + after M = products``, where both are symmetric.

    In the bases of their eigenvectors every entry of ``M`` has an equation of its own.
    """
    ridge = _RIDGE * (before + after).diagonal(dim1=1, dim2=2).mean(1)
    of_before, right = torch.linalg.eigh(before)
    of_after, left = torch.linalg.eigh(after)
    sums = of_after[:, :, None] + of_before[:, None, :] + ridge[:, None, None]
    solution: Tensor = left @ (left.mT @ products @ right / sums) @ right.mT
    return solution


def _turning(matrices: Tensor) -> Tensor:
    """The nearest rotations with a factor, ``[blocks, 2, 2]``."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    along: Tensor = matrices.diagonal(dim1=1, dim2=2).mean(1)
    across = (matrices * quarter).sum((1, 2)) / 2
    identity = torch.eye(2, dtype=torch.float64)
    return along[:, None, None] * identity + across[:, None, None] * quarter


def _keeping_ones(rotations: Tensor) -> Tensor:
    """Rotations of what is centred, with the vector of ones kept as it is."""
    size = rotations.shape[-1]
    centre = torch.eye(size, dtype=torch.float64) - 1.0 / size
    return centre @ rotations @ centre + 1.0 / size


def inverse_of(matrices: Tensor) -> Tensor:
    """The inverses, with directions left out that the matrices all but lose."""
    inverses: Tensor = torch.linalg.pinv(matrices, rtol=_SMALLEST)
    return inverses
