"""Which entries of a weight an alignment may look at, and which are kept for its test."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["correlations", "fitting_half", "some_columns"]

_SHORT_ROW = 64
_MOST_ENTRIES = 4096


def fitting_half(name: str, shape: torch.Size) -> Tensor | None:
    """The entries of a weight from which an alignment is fitted, bool in its shape.

    A kernel is on one side as a whole, because its entries resemble each other in every network.
    None for a weight with rows too short to be cut in two: all of it is used, and none is tested.
    """
    if len(shape) < 2 or shape[1:].numel() < _SHORT_ROW or shape[1] < 16:
        return None
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(shape[:2], generator=generator) < 0.5
    return half.reshape(*shape[:2], *(1,) * (len(shape) - 2)).expand(shape)


def correlations(own: Tensor, other: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Uncentred correlation of every row with every row of another matrix.

    Args:
        own: ``[n, D]``.
        other: ``[m, D]``.
        chosen: Entries of ``own`` to look at, bool ``[n, D]``, and the same of ``other``; None for
            all.

    Returns:
        ``[n, m]`` between -1 and 1, and the number of entries, ``[n, 1]``.
    """
    mask = torch.ones_like(own) if chosen is None else chosen.to(own.dtype)
    masked = own * mask
    sizes = masked.square().sum(1, keepdim=True) * (mask @ other.square().t())
    result = masked @ other.t() / sizes.sqrt().clamp_min(1e-30)
    return result.clamp(-1, 1), mask.sum(1, keepdim=True)


def some_columns(
    own: Tensor, other: Tensor, chosen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same columns of two matrices and a mask, fewer where there are very many."""
    if own.shape[1] > _MOST_ENTRIES:
        generator = torch.Generator().manual_seed(0)
        picked = torch.randperm(own.shape[1], generator=generator)[:_MOST_ENTRIES]
        own, other = own[:, picked], other[:, picked]
        chosen = chosen[:, picked] if chosen is not None else None
    return own, other, chosen
