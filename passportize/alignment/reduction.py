"""The channels of a suspect's groups, taken out one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from passportize.alignment.alignment import find_places
from passportize.alignment.clones import GroupReading
from passportize.alignment.held_out import HeldOut
from passportize.alignment.spaces import MatrixKind, MatrixSpace
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.truncation import truncate
from passportize.alignment.widths import MOST_WIDENED, WidenedHeldOut, Widths
from passportize.utils.precision import at_least_float32

__all__ = ["Reduction"]

_RESEMBLES = 0.5
"""Squared rest of a channel up to which noise may have made it from another."""


class Reduction:
    """A suspect from which channels are taken, in its own shapes: what is gone is zero.

    Args:
        released: The owner's plain weights, by the suspect's first names.
        suspect: The suspect's tensors; left as they are.
        wide: Its channels.
        widths: Both models.

    Attributes:
        tensors: What is left of the suspect's tensors.
        merged: Channels that were merged into others.
        dropped: Channels that were left out.
        hopeless: Why nothing can be done, in words; empty where something can.
    """

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
        self._names: dict[int, set[str]] = {}
        self._settled: dict[int, tuple[float, list[int]]] = {}
        for number, group in enumerate(wide.groups):
            if not self.over(number):
                continue
            names = [wide.axes[at].tensor for at, _ in group.places]
            self._names[number] = set(names)
            space = next((space for space in wide.spaces if space.group == number), None)
            if space is None:
                self._readings[number] = GroupReading(wide, group)
                known = self._readings[number].known
            else:
                self._spaces[number] = space
                known = space.kind is not MatrixKind.ROTARY and space.blocks == 1
            if not known:
                self.hopeless = f"{names[0]} has channels too many of a kind that is not undone"
            if group.size > MOST_WIDENED * widths.sizes[number]:
                self.hopeless = f"{names[0]} is more than {MOST_WIDENED} times as wide"
        touched = set().union(*self._names.values())
        self.tensors = {name: _writable(value, name in touched) for name, value in suspect.items()}
        self._changes = dict.fromkeys(touched, 0)

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
                seen = tolerance, [self._changes[name] for name in self._names[number]]
                if not self.over(number) or self._settled.get(number) == seen:
                    continue
                self._settled[number] = seen
                if number in self._spaces:
                    found = self._truncate(number, tolerance)
                else:
                    found = self._reduce(number, tolerance**2)
                if found:
                    changed = True
                    for name in self._names[number]:
                        self._changes[name] += 1

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
        levels = reading.levels(self.tensors)
        apart, ratios = reading.clones(levels)
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
        nothing = (reading.weights(self.tensors, levels) <= rest) & self._alive[number]
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

    def choose(self, held_out: HeldOut, present: Sequence[int] | None = None) -> None:
        """Take out what corresponds to nothing in the released weights.

        Args:
            held_out: What is not looked at in the released shapes.
            present: As in :func:`passportize.alignment.narrowing.narrow`.
        """
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
        orders = find_places(own, self.tensors, self._wide, unseen, self._widths.sizes, present)
        for number, reading in self._readings.items():
            if not self.over(number):
                continue
            size, order = self._widths.sizes[number], orders[number]
            if order is None:
                order = torch.argsort(~self._alive[number], stable=True)
            stays, rest = order[:size], order[size:]
            rest = rest[self._alive[number][rest]]
            apart, ratios = reading.clones(reading.levels(self.tensors))
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
    """A tensor that can be changed, without what would spoil every sum it enters."""
    if not touched or not tensor.is_floating_point():
        return tensor
    tensor = at_least_float32(tensor, copy=True)
    return tensor.nan_to_num_(0.0, 0.0, 0.0)
