"""Groups of grouped convolutions too many, taken out of a suspect by itself.

A thief can add groups that nothing reads, or have a group twice with its output parted between
both. A group goes of which nothing is read, or all of whose channels are made as those of another
are, whichever is nearer to that, until as many are left as were released.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from passportize.alignment.copies import next_to_go, without_channels
from passportize.alignment.groups import Exchange
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["in_released_groups"]

_Lying: TypeAlias = frozenset[tuple[str, int, str]]


def in_released_groups(
    suspect: Mapping[str, Tensor], wide: TiedChannels, tied: TiedChannels
) -> dict[str, Tensor] | None:
    """The suspect's tensors with as many groups as were released.

    Args:
        suspect: The suspect's tensors; left as they are.
        wide: Its channels.
        tied: The channels of the released model.

    Returns:
        All tensors by name; None where no groups are too many.
    """
    released = {_lying(exchange, tied): exchange for exchange in tied.exchanges}
    gone = [torch.zeros(exchange.size, dtype=torch.bool) for exchange in wide.exchanges]
    for exchange, mask in zip(wide.exchanges, gone, strict=True):
        partner = released.get(_lying(exchange, wide))
        if partner is not None and exchange.size > partner.size:
            mask[_left_out(exchange, suspect, wide, partner.size)] = True
    if not any(bool(mask.any()) for mask in gone):
        return None
    return without_channels(suspect, wide, gone, wide.exchanges)


def _lying(exchange: Exchange, tied: TiedChannels) -> _Lying:
    axes = [tied.axes[number] for number, _ in exchange.places]
    return frozenset((axis.tensor, axis.dim, axis.role) for axis in axes)


def _left_out(
    exchange: Exchange, tensors: Mapping[str, Tensor], tied: TiedChannels, size: int
) -> list[int]:
    """Groups that go."""
    read = torch.zeros(exchange.size, dtype=torch.float64)
    apart = torch.zeros(exchange.size, exchange.size, dtype=torch.float64)
    for role, entries in _parts(exchange, tensors, tied):
        if role == "columns":
            read += entries.square().sum((1, 2)) / entries.square().sum().clamp_min(1e-300)
        else:
            # Channels of a group may lie in any order, in any size and with any sign.
            rows = normalize(entries, dim=2)
            alike = torch.einsum("acf,bdf->abcd", rows, rows).abs().amax(3).amin(2)
            apart = torch.maximum(apart, (1 - alike.square()).clamp_min(0).sqrt())
    apart.fill_diagonal_(torch.inf)
    sizes = read.sqrt()
    left = list(range(exchange.size))
    gone: list[int] = []
    while len(left) > size:
        found = next_to_go(sizes[left], apart[left][:, left])
        gone.append(min((left[at] for at in found), key=lambda group: float(sizes[group])))
        left.remove(gone[-1])
    return gone


def _parts(
    exchange: Exchange, tensors: Mapping[str, Tensor], tied: TiedChannels
) -> Iterator[tuple[str, Tensor]]:
    """What every group has along the weights that write and read it, ``[groups, n, features]``."""
    for number, places in exchange.places:
        axis = tied.axes[number]
        tensor = tensors[axis.tensor]
        if tensor.dim() > 1 and axis.moves and axis.role in ("rows", "columns"):
            values = tensor.double().nan_to_num(0.0, 0.0, 0.0)
            yield axis.role, axis.entries(values, places).reshape(*places.shape, -1)
