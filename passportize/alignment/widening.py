"""A suspect with fewer channels than the released model: what is left of it, laid beside the whole.

Structured pruning takes whole channels out: rows of what makes them and columns of what reads them.
The suspect is filled up to the released widths with channels that are nothing, and aligned; the
best assignment leaves as many released channels to these as there are too few. What was taken out
is marked, entry by entry, and neither compared nor read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.undoing import Undoing
from passportize.alignment.widths import MOST_WIDENED, OTHER_TIES, Widths

__all__ = ["Widened", "absent_entries", "widen"]

_THERE = 0.5
"""Share of a channel that a matrix has to leave for it to count as there."""


@dataclass(frozen=True, eq=False)
class Widened:
    """A suspect as wide as the released model.

    Attributes:
        tensors: Its tensors by name; channels that it has not are last in their group, and zero.
        present: How many channels of each group are its own.
        missing: How many it has too few, of all groups.
        copies: How many it had that copied others or that nothing read.
    """

    tensors: Mapping[str, Tensor]
    present: tuple[int, ...]
    missing: int
    copies: int = 0


def widen(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    narrow: TiedChannels,
) -> Widened | str:
    """Fill a suspect up to the widths that were released.

    Args:
        released: The owner's plain weights, by the suspect's first names.
        suspect: The suspect's tensors; left as they are.
        tied: The channels of the released model.
        narrow: Those of the suspect.

    Returns:
        The suspect, or in words why that cannot be done.
    """
    widths = Widths(tied, narrow)
    if not widths.fits:
        return OTHER_TIES
    for group, size in zip(tied.groups, widths.sizes, strict=True):
        if group.size > MOST_WIDENED * size:
            name = tied.axes[group.places[0][0]].tensor
            return f"{name} has less than one of {MOST_WIDENED} of its channels"
    tensors = {}
    for name, tensor in suspect.items():
        try:
            tensors[name] = widths.widened(name, tensor, released[name].shape)
        except ValueError:
            return f"{name} has another size in a place where channels cannot be told apart"
    missing = sum(group.size for group in tied.groups) - sum(widths.sizes)
    return Widened(tensors, tuple(widths.sizes), missing)


def absent_entries(
    undoing: Undoing, tied: TiedChannels, present: tuple[int, ...], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Entries of the released weights that a suspect with fewer channels has no part in.

    Args:
        undoing: What an alignment has found.
        tied: The channels of the released model.
        present: How many channels of each group are the suspect's own.
        shapes: Shape of every tensor by name.

    Returns:
        Masks by name, bool in the tensors' shapes, of those that lack something.
    """
    spaces = {space.group: number for number, space in enumerate(tied.spaces)}
    found: dict[str, Tensor] = {}
    orders = undoing.orders[len(tied.exchanges) :]
    for number, group in enumerate(tied.groups):
        if present[number] == group.size:
            continue
        order = orders[number]
        gone = (torch.arange(group.size) if order is None else order) >= present[number]
        matrices = undoing.matrices[spaces[number]] if number in spaces else None
        if matrices is not None:
            # Of what a matrix all but loses the suspect says nothing.
            kept = torch.linalg.pinv(matrices[0], rtol=1e-3) @ matrices[0]
            gone = kept.diagonal() < _THERE
        for at, places in group.places:
            axis = tied.axes[at]
            if axis.tensor not in shapes:
                continue
            shape = shapes[axis.tensor]
            mask = found.setdefault(axis.tensor, torch.zeros(shape, dtype=torch.bool))
            axis.of(mask).movedim(axis.dim, 0)[places[gone].reshape(-1)] = True
    return found
