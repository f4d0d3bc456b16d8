"""Which entries of a weight an alignment may look at, and which are kept for what is read after it.

An alignment prefers whatever resembles the released weights, and these know the key. So what it
has looked at proves nothing any more: likeness and bits of an aligned suspect come from the other
entries. Which these are is decided by the shape of a weight alone, so that neither party has a say.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["compared", "correlations", "fitting_entries", "some_columns"]

FITTED = 0.25
"""Share of the entries that an alignment looks at.

What is left of a long row has .99 of its strength, of a kernel of nine entries about half."""

_LONG_ROW = 64
_MANY_KERNELS = 16
_CARRIES_NOTHING = 8
_MOST_ENTRIES = 4096


def compared(shape: torch.Size) -> bool:
    """Whether likeness is measured on a weight: its rows are long, and of many kernels each."""
    return len(shape) > 1 and shape[1:].numel() >= _LONG_ROW and shape[1] >= _MANY_KERNELS


@functools.lru_cache(maxsize=64)
def fitting_entries(shape: torch.Size) -> Tensor:
    """The entries of a weight from which an alignment is fitted, bool in its shape.

    A kernel is on one side as a whole where a row has many, because its entries resemble each
    other in every network. All of a tensor that can carry no bit is used: vectors, and weights
    with rows of fewer than eight entries.
    """
    if len(shape) < 2 or shape[1:].numel() < _CARRIES_NOTHING:
        return torch.ones(shape, dtype=torch.bool)
    drawn = shape[:2] if compared(shape) else shape
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(math.prod(drawn), generator=generator).view(drawn)
    # At least one of each row, to tell its sign from.
    least = numbers.flatten(1).amin(1).reshape(-1, *(1,) * (len(drawn) - 1))
    fitted = (numbers < FITTED) | (numbers == least)
    return fitted.reshape(*drawn, *(1,) * (len(shape) - len(drawn))).expand(shape)


def correlations(own: Tensor, other: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Uncentred correlation of every row with every row of another matrix.

    Args:
        own: ``[n, D]``.
        other: ``[m, D]``.
        chosen: Entries of ``own`` to look at, bool ``[n, D]``, and the same of ``other``.

    Returns:
        ``[n, m]`` between -1 and 1, and the number of entries, ``[n, 1]``.
    """
    mask = chosen.to(own.dtype)
    masked = own * mask
    sizes = masked.square().sum(1, keepdim=True) * (mask @ other.square().t())
    result = masked @ other.t() / sizes.sqrt().clamp_min(1e-30)
    return result.clamp(-1, 1), mask.sum(1, keepdim=True)


def some_columns(own: Tensor, other: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same columns of two matrices and a mask, fewer where there are very many."""
    if own.shape[1] > _MOST_ENTRIES:
        generator = torch.Generator().manual_seed(0)
        picked = torch.randperm(own.shape[1], generator=generator)[:_MOST_ENTRIES]
        own, other, chosen = own[:, picked], other[:, picked], chosen[:, picked]
    return own, other, chosen
