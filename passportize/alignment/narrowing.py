"""A suspect with more channels than the released model, reduced to as many: dummies undone.

A thief can add channels that change no output ("Rethinking White-Box Watermarks on Deep Learning
Models under Neural Structural Obfuscation", USENIX Security 2023): some that nothing reads, some
that cancel each other, and a channel as several. They are taken out again, group by group, never
below the width that the released model has there:

1. Without the released weights: clones are merged, what reads the one then reads the other as well;
   and what is not read goes. From the last group to the first, because what only dummies read is
   one, and from the first to the last, because the rows of clones can differ in what comes from
   dummies; until nothing changes, first for what is exact, then for what rounding has blurred.
   Where more than the excess would go, none of them does. Where any matrix may lie on channels,
   what the network sees of them keeps its rank (:mod:`passportize.alignment.truncation`).
2. Where noise or training lie on top, a group still has too many. The suspect is aligned as it is,
   the best assignment leaving as many channels over as there are too many; what is left over is
   merged where it resembles a channel that stays, else dropped.

The second step looks at the entries that every alignment looks at and at no others, so which
channels stay is, like their order, no function of what is read afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.alignment import find_places
from passportize.alignment.clones import GroupReading
from passportize.alignment.held_out import HeldOut
from passportize.alignment.spaces import MatrixKind, MatrixSpace
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.truncation import truncate
from passportize.alignment.widths import WidenedHeldOut, Widths

__all__ = ["MOST_WIDENED", "Narrowed", "narrow"]

MOST_WIDENED = 8
"""Times as many channels as the released model has in a group, beyond which nothing is tried."""

_TOLERANCES = (1e-3, 0.03)
"""Rest of a channel, in units of its size, up to which it is nothing: exact, and rounded."""

_RESEMBLES = 0.5
"""Squared rest of a channel up to which noise may have made it from another."""


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A suspect as wide as the released model.

    Attributes:
        tensors: Its tensors by name.
        merged: Channels that were merged into others.
        dropped: Channels that were left out.
        chosen: How many of both only the released weights could choose.
    """

    tensors: Mapping[str, Tensor]
    merged: int
    dropped: int
    chosen: int


def narrow(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    wide: TiedChannels,
    held_out: HeldOut,
) -> Narrowed | str:
    """Take the channels out of a suspect that the released model does not have.

    Args:
        released: The owner's plain weights, by the suspect's first names.
        suspect: The suspect's tensors; left as they are.
        tied: The channels of the released model.
        wide: Those of the suspect.
        held_out: What is not looked at in the released shapes.

    Returns:
        The suspect, or in words why it cannot be reduced.
    """
    widths = Widths(wide, tied)
    if not widths.fits:
        return "its channels are tied to each other in another way, or are fewer"
    search = _Narrowing(released, suspect, wide, widths)
    if search.hopeless:
        return search.hopeless
    for tolerance in _TOLERANCES:
        search.settle(tolerance)
    chosen = search.excess()
    if chosen:
        search.choose(held_out)
    tensors = {}
    try:
        for name, tensor in search.tensors.items():
            shape = released[name].shape
            tensors[name] = widths.narrowed(name, tensor, shape, search.kept())
    except ValueError as error:
        return f"{error} has another size in a place where channels cannot be told apart"
    for alias, first in wide.aliases.items():
        if alias in tensors and first in tensors:
            tensors[alias] = tensors[first]
    return Narrowed(tensors, search.merged, search.dropped, chosen)


class _Narrowing:
    """A suspect from which channels are taken, in its own shapes: what is gone is zero."""

    def __init__(
        self,
        released: Mapping[str, Tensor],
        suspect: Mapping[str, Tensor],
        wide: TiedChannels,
        widths: Widths,
    ) -> None:
        self._released, self._wide, self._widths = released, wide, widths
        self._alive = [torch.ones(group.size, dtype=torch.bool) for group in wide.groups]
        self._places: dict[int, Tensor] = {}
        self.merged = self.dropped = 0
        self.hopeless = ""
        self._readings: dict[int, GroupReading] = {}
        self._spaces: dict[int, MatrixSpace] = {}
        touched = set()
        for number, group in enumerate(wide.groups):
            if not self.over(number):
                continue
            names = [wide.axes[at].tensor for at, _ in group.places]
            touched.update(names)
            space = next((space for space in wide.spaces if space.group == number), None)
            if space is None:
                self._readings[number] = GroupReading(wide, group)
                known = self._readings[number].known
            else:
                self._spaces[number] = space
                known = space.kind is MatrixKind.LINEAR and space.blocks == 1
            if not known:
                self.hopeless = f"{names[0]} has channels too many of a kind that is not undone"
            if group.size > MOST_WIDENED * widths.sizes[number]:
                self.hopeless = f"{names[0]} is more than {MOST_WIDENED} times as wide"
        self.tensors = {name: _writable(value, name in touched) for name, value in suspect.items()}

    def over(self, number: int) -> int:
        """Channels that a group has too many."""
        return int(self._alive[number].sum()) - self._widths.sizes[number]

    def excess(self) -> int:
        """The same of all groups."""
        return sum(self.over(number) for number in range(len(self._alive)))

    def kept(self) -> list[Tensor]:
        """The channels of each group that stay, in the order in which they are laid out."""
        return [
            self._places.get(number, alive.nonzero()[:, 0])
            for number, alive in enumerate(self._alive)
        ]

    def settle(self, tolerance: float) -> None:
        """Take out whatever is nothing, back and forth, until nothing changes."""
        changed = True
        while changed and self.excess():
            changed = False
            order = sorted((*self._readings, *self._spaces))
            for number in (*reversed(order), *order):
                if not self.over(number):
                    continue
                if number in self._spaces:
                    changed |= self._truncate(number, tolerance)
                else:
                    changed |= self._reduce(number, tolerance**2)

    def _truncate(self, number: int, tolerance: float = math.inf) -> bool:
        """Reduce a space that a matrix may lie on to its rank."""
        least, before = self._widths.sizes[number], int(self._alive[number].sum())
        size = truncate(self._spaces[number], least, self._wide, self.tensors, tolerance)
        if size >= before:
            return False
        self.dropped += before - size
        self._alive[number][size:] = False
        return True

    def _reduce(self, number: int, rest: float) -> bool:
        """Merge the clones of a group and drop what is not read, up to a squared rest."""
        reading, alive = self._readings[number], self._alive[number]
        apart, ratios = reading.clones(self.tensors)
        left, pairs = alive.clone(), []
        for into in alive.nonzero()[:, 0].tolist():
            if left[into]:
                near = (apart[into] <= rest) & left
                near[: into + 1] = False
                left &= ~near
                pairs += [(into, clone) for clone in near.nonzero()[:, 0].tolist()]
        changed = 0 < len(pairs) <= self.over(number)
        if changed:
            self._merge(number, pairs, ratios)
        nothing = (reading.weights(self.tensors) <= rest) & self._alive[number]
        if 0 < int(nothing.sum()) <= self.over(number):
            self._drop(number, nothing)
            changed = True
        return changed

    def _merge(
        self, number: int, pairs: list[tuple[int, int]], ratios: Mapping[int, Tensor]
    ) -> None:
        if not pairs:
            return
        for into, clone in pairs:
            self._readings[number].merge(self.tensors, into, clone, ratios)
        clones = torch.tensor([clone for _, clone in pairs])
        self._readings[number].clear(self.tensors, clones)
        self._alive[number][clones] = False
        self.merged += len(pairs)

    def _drop(self, number: int, which: Tensor) -> None:
        self._readings[number].clear(self.tensors, which.nonzero()[:, 0])
        self._alive[number] &= ~which
        self.dropped += int(which.sum())

    def choose(self, held_out: HeldOut) -> None:
        """Take out what corresponds to nothing in the released weights."""
        for number in self._spaces:
            if self.over(number):
                self._truncate(number)
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        known = {name: value for name, value in self._released.items() if name in shapes}
        narrow_shapes = {name: tensor.shape for name, tensor in known.items()}
        own = {
            name: self._widths.widened(name, tensor, shapes[name]) for name, tensor in known.items()
        }
        unseen = WidenedHeldOut(held_out, self._widths, narrow_shapes, shapes)
        orders = find_places(own, self.tensors, self._wide, unseen, self._widths.sizes)
        for number, reading in self._readings.items():
            if not self.over(number):
                continue
            size, order = self._widths.sizes[number], orders[number]
            if order is None:
                order = torch.argsort(~self._alive[number], stable=True)
            stays, rest = order[:size], order[size:]
            rest = rest[self._alive[number][rest]]
            apart, ratios = reading.clones(self.tensors)
            nearest, at = apart[stays][:, rest].min(0)
            pairs = [
                (int(stays[into]), clone)
                for into, clone, near in zip(
                    at.tolist(), rest.tolist(), nearest <= _RESEMBLES, strict=True
                )
                if near
            ]
            self._merge(number, pairs, ratios)
            gone = self._alive[number].clone()
            gone[stays] = False
            self._drop(number, gone)
            self._places[number] = stays


def _writable(tensor: Tensor, touched: bool) -> Tensor:
    if not touched or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
