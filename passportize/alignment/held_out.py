"""Which entries of a weight an alignment may look at, and which are kept for what is read after it.

An alignment prefers whatever resembles the released weights, and these know the key. So what it
has looked at of a weight that carries bits proves nothing any more: likeness and bits of an aligned
suspect come from the other entries. Which these are is decided by shapes alone, so that neither
party has a say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from passportize.alignment.tied_channels import TiedChannels

__all__ = [
    "EQUATIONS",
    "FEW_ENTRIES",
    "MOST_ENTRIES",
    "HeldOut",
    "correlations",
    "correlations_by_row",
    "drawn_columns",
    "fitting_entries",
    "some_columns",
]

FITTED = 0.25
"""Share of the entries that an alignment looks at.

What is left of a long row has .99 of its strength, of a kernel of nine entries about half."""

MOST_FITTED = 0.75
"""The same of the first layer that writes a space, where a quarter would leave its matrix open."""

EQUATIONS = 1.5
"""Entries of each row that are wanted for every unknown of a row of a matrix."""

_LONG_ROW = 64
_MANY_KERNELS = 16
_CARRIES_NOTHING = 8

MOST_ENTRIES = 512
"""Entries of each row from which it is told which channel is which."""

FEW_ENTRIES = 128
"""Entries that are enough for it in most copies: a row's own leads there by a hundred nats. As many
others at least have to bear it out."""


class HeldOut:
    """What of each tensor of a model an alignment looks at.

    Args:
        tied: The channels of the model.
        shapes: Shape of every tensor by first name.
        bound: Names of those that carry bits, of which something is held out; by default all.
    """

    def __init__(
        self,
        tied: TiedChannels,
        shapes: Mapping[str, torch.Size],
        bound: Collection[str] | None = None,
    ) -> None:
        self._shapes = shapes
        self._bound = frozenset(shapes if bound is None else bound)
        self._columns: dict[str, tuple[int, float]] = {}
        self._open: set[str] = set()
        for space in tied.spaces:
            writers: list[str] = []
            equations = 0.0
            for side in space.sides:
                axis = tied.axes[side.axis]
                shape = shapes[axis.tensor]
                if side.writes and axis.role == "rows" and len(shape) > 1:
                    length = shape.numel() // shape[axis.dim]
                    share = min(MOST_FITTED, max(FITTED, EQUATIONS * space.size / length))
                    share = FITTED if writers else share
                    self._columns.setdefault(axis.tensor, (axis.dim, share))
                    writers.append(axis.tensor)
                    equations += share * length
                elif axis.role == "rows" and len(shape) > 1:  # keys
                    self._columns.setdefault(axis.tensor, (axis.dim, FITTED))
            if equations < space.size:
                # A matrix that fits the released rows then exists for any model, and what reads
                # the space can be anything.
                self._open.update(
                    name
                    for side in space.sides
                    if len(shapes[name := tied.axes[side.axis].tensor]) > 1
                )

    def share(self, name: str) -> float:
        """Share of the entries of a row of a tensor from which an alignment is fitted."""
        if name not in self._bound:
            return 1.0
        return self._columns[name][1] if name in self._columns else FITTED

    def readable(self, name: str) -> bool:
        """Whether what an alignment leaves of a tensor can tell a copy from a stranger."""
        return name not in self._open

    def holds(self, name: str) -> bool:
        """Whether something of a tensor is held out."""
        return name in self._bound

    def compared(self, name: str) -> bool:
        """Whether likeness is measured on it: its rows are long, and of many kernels each."""
        readable = name in self._bound and self.readable(name)
        return readable and _long_rows(self._shapes[name])

    def fitted(self, name: str) -> Tensor:
        """The entries from which an alignment is fitted, bool in the tensor's shape.

        Where a matrix acts on rows, it is the same entries of every row.
        """
        shape = self._shapes[name]
        if name not in self._bound:
            return torch.ones((), dtype=torch.bool).expand(shape)
        if name in self._columns:
            return _fitting_columns(shape, *self._columns[name])
        return fitting_entries(shape)


def _long_rows(shape: torch.Size) -> bool:
    return len(shape) > 1 and shape[1:].numel() >= _LONG_ROW and shape[1] >= _MANY_KERNELS


@functools.lru_cache(maxsize=64)
def _fitting_columns(shape: torch.Size, dim: int, share: float) -> Tensor:
    rest = [size for d, size in enumerate(shape) if d != dim]
    numbers = torch.rand(math.prod(rest), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(len(numbers), dtype=torch.bool)
    chosen[numbers.argsort()[: math.ceil(share * len(numbers))]] = True
    return chosen.view(rest).unsqueeze(dim).expand(shape)


@functools.lru_cache(maxsize=64)
def fitting_entries(shape: torch.Size) -> Tensor:
    """The entries of a weight from which an alignment is fitted, bool in its shape.

    A kernel is on one side as a whole where a row has many, because its entries resemble each
    other in every network. All of a tensor that can carry no bit is used: vectors, and weights
    with rows of fewer than eight entries.
    """
    if len(shape) < 2 or shape[1:].numel() < _CARRIES_NOTHING:
        return torch.ones(shape, dtype=torch.bool)
    drawn = shape[:2] if _long_rows(shape) else shape
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
    if bool((chosen == chosen[:1]).all()):
        # The same entries of every row, as in most cases: the lengths need no product.
        own, other = own[:, chosen[0]], other[:, chosen[0]]
        lengths = [torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-15) for rows in (own, other)]
        result = (own @ other.t()).div_(lengths[0][:, None]).div_(lengths[1][None, :])
        entries = torch.full((len(own), 1), float(own.shape[1]), dtype=own.dtype)
        return result.clamp_(-1, 1), entries
    mask = chosen.to(own.dtype)
    masked = own * mask
    sizes = (mask @ other.square().t()).mul_(masked.square().sum(1, keepdim=True))
    # In place, because fresh memory for a table of all pairs takes as long as what is computed.
    result = (masked @ other.t()).div_(sizes.sqrt_().clamp_min_(1e-30))
    return result.clamp_(-1, 1), mask.sum(1, keepdim=True)


def correlations_by_row(own: Tensor, other: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The same of every row with the one at its place, ``[n]``, and the number of entries."""
    own, other = own * chosen, other * chosen
    lengths = [torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-15) for rows in (own, other)]
    found = (own * other).sum(1) / lengths[0] / lengths[1]
    return found.clamp(-1, 1), chosen.sum(1)


def some_columns(own: Tensor, other: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same columns of two matrices and a mask, fewer where there are very many.

    Columns of which nothing is looked at are the first to go.
    """
    if own.shape[1] > MOST_ENTRIES:
        picked = drawn_columns(chosen)[:MOST_ENTRIES]
        own, other, chosen = own[:, picked], other[:, picked], chosen[:, picked]
    return own, other, chosen


def drawn_columns(chosen: Tensor) -> Tensor:
    """All columns of a mask in a drawn order, those of which nothing is looked at last."""
    order = torch.rand(chosen.shape[1], generator=torch.Generator().manual_seed(0))
    columns: Tensor = (order - chosen.any(0).to(order)).argsort()
    return columns
