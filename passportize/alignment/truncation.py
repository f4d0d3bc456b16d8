"""A space of channels that any matrix may act on, reduced to fewer channels.

With ``X`` all that writes it and ``Y`` all that reads it, a network sees nothing but ``Y^T X``.
Channels that nothing reads, that cancel each other or are there several times do not raise its
rank, whatever matrix lies on them, so the leading part of it, in balanced coordinates (Moore 1981),
is the space without them. Before a norm over channels only rotations may act, and the leading
directions of ``X`` are kept as they are; how many channels a norm counts changes a common factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from passportize.alignment.folding import act
from passportize.alignment.spaces import MatrixKind, MatrixSpace, fold_factors
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["in_balance", "truncate"]


def truncate(
    space: MatrixSpace,
    size: int,
    tied: TiedChannels,
    tensors: Mapping[str, Tensor],
    tolerance: float = math.inf,
) -> int:
    """Carry a space into its first channels and set the others to zero, in place.

    Args:
        space: One block of channels, no pairs of them.
        size: How many channels to leave at least.
        tied: The channels of the model.
        tensors: Its tensors by first name.
        tolerance: What is nothing, in units of the smallest part that has to stay; by default all
            that has not to stay.

    Returns:
        How many channels are left.
    """
    factors = fold_factors([space], tied.axes, tied.scales, tensors)
    grams = [torch.zeros(space.size, space.size, dtype=torch.float64) for _ in range(2)]
    folded: list[Tensor] = []
    for side in space.sides:
        axis = tied.axes[side.axis]
        part = axis.of(tensors[axis.tensor]).double()
        if side.axis in factors:
            part = part * axis.spread(factors[side.axis], part)
        folded.append(part)
        if tensors[axis.tensor].dim() > 1 or space.kind is not MatrixKind.LINEAR:
            rows = part.movedim(axis.dim, 0)[side.places.reshape(-1)].reshape(space.size, -1)
            grams[int(side.writes)] += rows @ rows.t()
    if space.kind is MatrixKind.LINEAR:
        acting, strengths = in_balance(*grams)
        size = max(size, int((strengths > tolerance * strengths[size - 1]).sum()))
    else:
        acting, size = _leading(grams[1], size, space.kind is MatrixKind.CENTRED, tolerance)
    if size == space.size:
        return size
    acting[:, size:] = 0
    acting = acting[:, None]
    for side, part in zip(space.sides, folded, strict=True):
        axis = tied.axes[side.axis]
        here = axis.of(tensors[axis.tensor])
        act(acting[int(side.writes)], side, axis, part)
        here.copy_(part)
    for diagonal in space.diagonals:
        count = len(diagonal.before)
        for key, name in diagonal.tensors.items():
            if key in ("weight", "running_var"):
                spread = key == "weight" and "running_var" in diagonal.tensors
                here = tensors[name].reshape(-1).narrow(0, diagonal.first, count)
                one = math.sqrt(1.0 + diagonal.eps) if spread else 1.0
                here.fill_(one - diagonal.offset if key == "weight" else one)
    return size


def _leading(writing: Tensor, size: int, centred: bool, tolerance: float) -> tuple[Tensor, int]:
    """The leading directions of what is written, as the first channels, and how many they are.

    Where the mean over channels is taken away, they are laid across the vector of ones.
    """
    count = len(writing)
    if centred:
        away = torch.eye(count, dtype=torch.float64) - 1.0 / count
        writing = away @ writing @ away
    strengths, directions = torch.linalg.eigh(writing)
    strengths, rows = strengths.flip(0).clamp_min(0).sqrt(), directions.t().flip(0)
    one = int(centred)
    least = tolerance * strengths[max(0, size - one - 1)]
    size = max(size, int((strengths > least).sum()) + one)
    acting = torch.zeros(count, count, dtype=torch.float64)
    if size < count:
        start = torch.eye(size, dtype=torch.float64)
        start[:, 0] = 1.0
        across = torch.linalg.qr(start)[0][:, 1:] if centred else torch.eye(size).double()
        acting[:size] = across @ rows[: size - one]
    return acting.expand(2, count, count).clone(), min(size, count)


def in_balance(reading: Tensor, writing: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in which what writes a space and what reads it are equally large.

    Args:
        reading: Inner products of all that reads its channels, float64 ``[size, size]``.
        writing: Of all that writes them.

    Returns:
        Matrices on what reads and on what writes, ``[2, size, size]``, and how much of ``Y^T X``
        each of their rows is, the largest first.
    """
    reads, writes = _root(reading), _root(writing)
    left, strengths, right = torch.linalg.svd(reads @ writes)
    weak = strengths <= 1e-12 * strengths[0].clamp_min(1e-300)
    shares = torch.where(weak, 0.0, strengths.masked_fill(weak, 1).rsqrt())[:, None]
    return torch.stack([shares * (right @ writes), shares * (left.t() @ reads)]), strengths


def _root(gram: Tensor) -> Tensor:
    """The symmetric square root of a matrix of inner products."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return root
