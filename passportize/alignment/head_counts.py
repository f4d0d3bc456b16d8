"""Heads of attention too many, taken out of a suspect without a look at the released weights.

A thief can add heads that nothing reads, pairs that cancel, or have one head twice with its output
parted between both. Two heads weigh alike where the products of their queries and keys are the
same, whatever matrices lie on them; what they make of the values then adds up. So heads that weigh
alike are merged and heads of which nothing comes are left out, whichever is nearer to that, until
as many are left as were released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.attention_heads import match_heads
from passportize.alignment.copies import next_to_go, without_channels
from passportize.alignment.spaces import Side
from passportize.alignment.tied_channels import TiedChannels, TiedGroup
from passportize.alignment.truncation import in_balance
from passportize.alignment.widths import Widths

__all__ = ["heads_of", "in_released_number", "left_out"]


def in_released_number(
    suspect: Mapping[str, Tensor], wide: TiedChannels, tied: TiedChannels
) -> dict[str, Tensor] | None:
    """The suspect's tensors with as many heads as were released.

    Args:
        suspect: The suspect's tensors; left as they are.
        wide: Its channels.
        tied: The channels of the released model.

    Returns:
        All tensors by name; None where no heads are too many.
    """
    widths = Widths(wide, tied)
    if not widths.fits:
        return None
    tensors = dict(suspect)
    gone = [torch.zeros(group.size, dtype=torch.bool) for group in wide.groups]
    for number, group in enumerate(wide.groups):
        if group.size > widths.sizes[number]:
            heads = heads_of(group, wide)
            if heads is not None:
                gone[number][left_out(heads, tensors, wide, widths.sizes[number])] = True
    if not any(bool(mask.any()) for mask in gone):
        return None
    return without_channels(tensors, wide, gone)


@dataclass(frozen=True, eq=False)
class _Heads:
    """Where the parts of every head lie: number of the axis and entries, ``[heads, channels]``.

    Where heads share keys and values they are one, with queries and readers one after the other.
    """

    queries: tuple[int, Tensor]
    keys: tuple[int, Tensor]
    values: tuple[int, Tensor]
    shifts: tuple[int, Tensor] | None
    behind: tuple[int, Tensor]
    sharing: int


def heads_of(group: TiedGroup, tied: TiedChannels) -> _Heads | None:
    """The heads that a group is one of; None where it is none of attention."""
    places = dict(group.places)
    found: dict[str, tuple[int, Tensor]] = {}
    for space in tied.spaces:
        reads = any(tied.axes[side.axis].role == "columns" for side in space.sides)
        for side in space.sides if space.group is None else ():
            lying = _in_bundles(side, places.get(side.axis), group.size)
            if lying is None:
                continue
            role = tied.axes[side.axis].role
            if reads:
                part = {"rows": "values", "vector": "shifts"}.get(role, "behind")
            else:
                part = ("queries" if side.writes else "keys") if role == "rows" else ""
            found[part] = (side.axis, lying)
    if not {"queries", "keys", "values", "behind"} <= found.keys():
        return None
    times = {
        found[many][1].shape[1] / found[one][1].shape[1]
        for one, many in (("keys", "queries"), ("values", "behind"))
    }
    if len(times) > 1 or not (sharing := times.pop()).is_integer():
        return None
    return _Heads(
        found["queries"],
        found["keys"],
        found["values"],
        found.get("shifts"),
        found["behind"],
        int(sharing),
    )


def _in_bundles(side: Side, places: Tensor | None, size: int) -> Tensor | None:
    """Those of the entries of each bundle that lie on a side."""
    if places is None:
        return None
    mine = torch.isin(places, side.places.reshape(-1))
    counts = mine.sum(1)
    if not bool((counts == counts[0]).all()) or not int(counts[0]):
        return None
    return places[mine].view(size, -1)


def left_out(heads: _Heads, tensors: dict[str, Tensor], tied: TiedChannels, size: int) -> list[int]:
    """Heads that go, whose part is added to those that stay.

    Args:
        heads: From :func:`heads_of`.
        tensors: Of the model by name; those that change are replaced.
        tied: Its channels.
        size: How many heads stay.
    """

    def read(part: tuple[int, Tensor]) -> Tensor:
        axis, entries = tied.axes[part[0]], part[1]
        values = tensors[axis.tensor].double().nan_to_num(0.0, 0.0, 0.0)
        return axis.entries(values, entries).reshape(*entries.shape, -1)

    queries, keys = read(heads.queries), read(heads.keys)
    # Heads that share keys weigh alike where each does.
    each = queries.view(len(keys), heads.sharing, keys.shape[1], -1).unbind(1)
    alike = torch.stack([match_heads((own, own), (keys, keys)) for own in each]).amin(0).double()
    apart = (1 - alike.square()).clamp_min(0).sqrt().fill_diagonal_(torch.inf)
    values, columns = read(heads.values), read(heads.behind)
    lying = len(values), heads.sharing, values.shape[1], columns.shape[2]
    behind = columns.view(lying).transpose(1, 2).flatten(2)
    shifts = read(heads.shifts) if heads.shifts is not None else values[:, :, :0]
    made = torch.cat([values, shifts], 2)
    width = values.shape[2]
    left = list(range(len(values)))
    changed: set[int] = set()
    while len(left) > size:
        found = next_to_go(_sizes(made[left, :, :width], behind[left]), apart[left][:, left])
        if len(found) == 1:
            left.pop(found[0])
            continue
        into, other = sorted(left[at] for at in found)
        together = torch.cat([made[into], made[other]]), torch.cat([behind[into], behind[other]])
        weights = together[0][:, :width]
        acting, _ = in_balance(together[1] @ together[1].t(), weights @ weights.t())
        count = len(made[into])
        behind[into], made[into] = (
            acting[0, :count] @ together[1],
            acting[1, :count] @ together[0],
        )
        changed.add(into)
        left.remove(other)
    _write(heads.values, made[:, :, :width], changed, tensors, tied)
    behind = behind.view(lying[0], lying[2], lying[1], lying[3]).transpose(1, 2)
    _write(heads.behind, behind.reshape(columns.shape), changed, tensors, tied)
    if heads.shifts is not None:
        _write(heads.shifts, made[:, :, width:], changed, tensors, tied)
    return [head for head in range(len(values)) if head not in left]


def _sizes(values: Tensor, behind: Tensor) -> Tensor:
    """How large what comes of every head is."""
    products = (behind @ behind.mT) * (values @ values.mT)
    return products.sum((1, 2)).clamp_min(0).sqrt()


def _write(
    part: tuple[int, Tensor],
    values: Tensor,
    changed: set[int],
    tensors: dict[str, Tensor],
    tied: TiedChannels,
) -> None:
    axis = tied.axes[part[0]]
    tensor = tensors[axis.tensor].clone()
    turned = axis.of(tensor).movedim(axis.dim, 0)
    for head in changed:
        turned[part[1][head]] = values[head].reshape(-1, *turned.shape[1:]).to(tensor)
    tensors[axis.tensor] = tensor
