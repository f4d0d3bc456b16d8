"""Channels that copy others or that nothing reads, taken out of a suspect that has few anyway.

Where a suspect has fewer channels than were released, some of these can be dummies all the same.
What is exactly nothing is found without the released weights; below the released width it is taken
out however much that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from passportize.alignment.clones import GroupReading
from passportize.alignment.reduction import Reduction
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.tied_channels import TiedChannels, TiedGroup
from passportize.alignment.widths import Widths

__all__ = ["next_to_go", "without_channels", "without_copies"]

_NOTHING = 1e-3


def without_copies(
    suspect: Mapping[str, Tensor], tied: TiedChannels, numbers: Collection[int]
) -> tuple[dict[str, Tensor], int] | None:
    """Merge clones and drop what is not read.

    Args:
        suspect: The suspect's tensors; left as they are.
        tied: Its channels.
        numbers: Numbers of the groups in which to look.

    Returns:
        Its tensors, narrower, and how many channels were taken out; None where there are none.
    """
    linear = {
        space.group
        for space in tied.spaces
        if space.kind is MatrixKind.LINEAR and space.blocks == 1
    }
    known = {
        number
        for number in numbers
        if number in linear
        or (number not in tied.replaced and GroupReading(tied, tied.groups[number]).known)
    }
    if not known:
        return None
    widths = Widths(tied, tied)
    widths.sizes = [
        1 if number in known else group.size for number, group in enumerate(tied.groups)
    ]
    search = Reduction({}, suspect, tied, widths)
    search.settle(_NOTHING)
    if not search.merged + search.dropped:
        return None
    gone = []
    for group, kept in zip(tied.groups, search.kept(), strict=True):
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[kept] = False
        gone.append(mask)
    return without_channels(search.tensors, tied, gone), search.merged + search.dropped


def without_channels(
    tensors: Mapping[str, Tensor],
    tied: TiedChannels,
    gone: Collection[Tensor],
    units: Collection[TiedGroup] | None = None,
) -> dict[str, Tensor]:
    """Tensors of a model without some of its channels.

    Args:
        tensors: The tensors by name; left as they are.
        tied: The channels.
        gone: Which channels of each group are taken out, bool ``[size]`` each.
        units: The groups, by default those of single channels.

    Returns:
        All tensors by name, those that lose something as new ones.
    """
    found = dict(tensors)
    kept: dict[tuple[str, int], Tensor] = {}
    for group, mask in zip(tied.groups if units is None else units, gone, strict=True):
        for number, places in group.places if bool(mask.any()) else ():
            axis = tied.axes[number]
            if axis.moves and axis.tensor in found:
                size = found[axis.tensor].shape[axis.dim]
                left = kept.setdefault((axis.tensor, axis.dim), torch.ones(size, dtype=torch.bool))
                left[axis.first + places[mask].reshape(-1)] = False
    for (name, dim), left in kept.items():
        tensor = found[name]
        found[name] = tensor.index_select(dim, left.nonzero()[:, 0].to(tensor.device)).contiguous()
    for alias, first in tied.aliases.items():
        if alias in found and first in found:
            found[alias] = found[first]
    return found


def next_to_go(sizes: Tensor, apart: Tensor) -> tuple[int, ...]:
    """What of several wholes is too many: one that is nothing, or two that are the same.

    Args:
        sizes: How large each is, ``[n]``.
        apart: How far every two are from being the same, from 0 to 1, ``[n, n]``; infinite for a
            whole and itself.

    Returns:
        The number of one, or those of two, whichever is nearer to that.
    """
    smallest, at = sizes.min(0)
    nearest, pair = apart.flatten().min(0)
    if float(smallest / sizes.median().clamp_min(1e-300)) <= float(nearest):
        return (int(at),)
    return divmod(int(pair), len(sizes))
