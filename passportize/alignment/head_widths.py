"""Heads of attention with more or fewer channels than were released, made as wide.

Of queries and keys a network sees nothing but their products, of values nothing but what the layer
behind them makes of them, head by head. Channels that a thief adds to a head, whatever they are,
leave the product of the weights as it is if the network computes what it did: they are not read,
cancel each other, or add the same number to the scores of all keys. So the leading part of each
head, in balanced coordinates (:mod:`passportize.alignment.truncation`), is the head without them,
up to a matrix that an alignment finds. Where the length of queries and keys is taken away, only
rotations may act, and the leading part is that of both together. A head that is narrower is filled
up with channels that are nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from passportize.alignment.axes import Axis
from passportize.alignment.head_counts import heads_of, left_out
from passportize.alignment.spaces import MatrixKind, MatrixSpace, Side
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.truncation import in_balance

__all__ = ["RESIZED", "in_released_heads"]

RESIZED = (MatrixKind.LINEAR, MatrixKind.ORTHOGONAL)
"""Heads that are given another width."""

_Lying: TypeAlias = tuple[tuple[str, int, str, bool], ...]


@dataclass(frozen=True, eq=False)
class _Heads:
    """Some heads in both models.

    Attributes:
        own: Their space in the suspect.
        released: In the released model.
        acting: What carries the one into the other, on what reads and on what writes,
            ``[2, heads, released, own]``.
    """

    own: MatrixSpace
    released: MatrixSpace
    acting: Tensor = field(repr=False)


def in_released_heads(
    suspect: Mapping[str, Tensor],
    wide: TiedChannels,
    released: Mapping[str, torch.Size],
    tied: TiedChannels,
    names: Mapping[str, str],
) -> dict[str, Tensor] | None:
    """The suspect's tensors with heads as wide as they were released.

    Args:
        suspect: The suspect's tensors; left as they are.
        wide: Its channels.
        released: Shapes of the released tensors.
        tied: The channels of the released model.
        names: The released name of each tensor, by the suspect's.

    Returns:
        All tensors by the suspect's names; None where no heads have another width or number, or a
        tensor has channels beside those of heads.
    """
    partners = {_lying(space, tied, {}): space for space in tied.spaces if _is_heads(space)}
    tensors = dict(suspect)
    pairs = [
        (space, partner)
        for space in wide.spaces
        if _is_heads(space) and (partner := partners.get(_lying(space, wide, names))) is not None
    ]
    found: list[_Heads] = []
    whole: dict[tuple[str, int], int] = defaultdict(int)
    for space, partner, kept in _kept(pairs, wide, tensors):
        for side in space.sides:
            axis = wide.axes[side.axis]
            whole[axis.tensor, axis.dim] += side.places.numel()
        if len(kept) == partner.blocks:
            sides = tuple(replace(side, places=side.places[kept]) for side in space.sides)
            staying = replace(space, blocks=len(kept), sides=sides)
            acting = _acting(staying, partner.size, wide, tensors)
            found.append(_Heads(staying, partner, acting))
    along: dict[tuple[str, int], list[tuple[_Heads, Side, Side]]] = {}
    for heads in found:
        for own, its in zip(heads.own.sides, heads.released.sides, strict=True):
            axis = wide.axes[own.axis]
            along.setdefault((axis.tensor, axis.dim), []).append((heads, own, its))
    for (name, dim), parts in along.items():
        count = released[names[name]][dim]
        if tensors[name].shape[dim] == count:
            continue
        if whole[name, dim] != tensors[name].shape[dim]:
            return None
        rows = tensors[name].double().nan_to_num(0.0, 0.0, 0.0).movedim(dim, 0)
        result = rows.new_zeros(count, *rows.shape[1:])
        for heads, own, its in parts:
            places = wide.axes[own.axis].first + own.places.reshape(-1)
            chosen = rows[places].reshape(heads.own.blocks, heads.own.size, -1)
            moved = heads.acting[int(own.writes)] @ chosen
            where = tied.axes[its.axis].first + its.places.reshape(-1)
            result[where] = moved.reshape(len(where), *rows.shape[1:])
        tensors[name] = result.movedim(0, dim).to(suspect[name].dtype).contiguous()
    changed = any(tensor.shape != suspect[name].shape for name, tensor in tensors.items())
    return tensors if changed else None


def _kept(
    pairs: Sequence[tuple[MatrixSpace, MatrixSpace]],
    wide: TiedChannels,
    tensors: dict[str, Tensor],
) -> Iterator[tuple[MatrixSpace, MatrixSpace, list[int]]]:
    """Each pair of spaces with the heads that stay; what others make is added to theirs."""
    bundle_of: dict[tuple[int, int], tuple[int, int]] = {}
    gone: dict[int, list[int]] = {}
    heads = {number: heads_of(group, wide) for number, group in enumerate(wide.groups)}
    for number, group in enumerate(wide.groups):
        if heads[number] is None:
            continue
        for at, places in group.places:
            for bundle, entries in enumerate(places.tolist()):
                bundle_of.update(dict.fromkeys(((at, e) for e in entries), (number, bundle)))
    for space, partner in pairs:
        first = space.sides[0]
        bundles = [bundle_of.get((first.axis, int(at))) for at in first.places[:, 0, 0]]
        kept = list(range(space.blocks))
        if space.blocks > partner.blocks and all(bundles):
            number = bundles[0][0] if bundles[0] is not None else 0
            own = heads[number]
            if number not in gone and own is not None:
                gone[number] = left_out(own, tensors, wide, partner.blocks)
            left = {(number, bundle) for bundle in gone.get(number, ())}
            kept = [block for block, bundle in enumerate(bundles) if bundle not in left]
        yield space, partner, kept


def _is_heads(space: MatrixSpace) -> bool:
    single = all(side.places.shape[2] == 1 for side in space.sides)
    return space.group is None and space.kind in RESIZED and single


def _lying(space: MatrixSpace, tied: TiedChannels, names: Mapping[str, str]) -> _Lying:
    """Where the channels of a space lie, by released names."""

    def on(axis: Axis, side: Side) -> tuple[str, int, str, bool]:
        return names.get(axis.tensor, axis.tensor), axis.dim, axis.role, side.writes

    return tuple(on(tied.axes[side.axis], side) for side in space.sides)


def _acting(
    space: MatrixSpace, size: int, tied: TiedChannels, tensors: Mapping[str, Tensor]
) -> Tensor:
    """What gives every head so many channels, ``[2, heads, size, channels]``."""
    if space.size <= size:
        eye = torch.eye(size, space.size, dtype=torch.float64)
        return eye.expand(2, space.blocks, size, space.size)
    grams = torch.zeros(2, space.blocks, space.size, space.size, dtype=torch.float64)
    for side in space.sides:
        axis = tied.axes[side.axis]
        tensor = tensors[axis.tensor]
        # What biases add is the same for all keys, or is there once more behind the values.
        if tensor.dim() > 1:
            # Numbers that are not finite would spoil every head.
            rows = axis.entries(tensor.double().nan_to_num(0.0, 0.0, 0.0), side.places)
            rows = rows.reshape(space.blocks, space.size, -1)
            grams[int(side.writes)] += rows @ rows.mT
    if space.kind is MatrixKind.ORTHOGONAL:
        leading: Tensor = torch.linalg.eigh(grams.sum(0))[1].mT.flip(1)[:, :size]
        return leading.expand(2, *leading.shape)
    found = [in_balance(*pair)[0][:, :size] for pair in zip(*grams, strict=True)]
    return torch.stack(found, 1)
