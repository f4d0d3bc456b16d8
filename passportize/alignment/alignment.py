"""Undoing a disguise: which channel of a suspect is which channel of the released weights.

Permutations, signs and scales of channels leave a network's function as it is, and hide a signature
that is read row by row. With the released weights at hand they can be found: group by group in the
order of the forward pass, so that the columns of a row are back in place before it is compared. Two
channels are as alike as

    sum over weights of  -D / 2 * log(1 - r^2)

with ``r`` the correlation of their ``D`` entries: the log-likelihood ratio of "one is a multiple of
the other plus noise" against "they have nothing in common", for unknown factor and noise. The best
assignment is that of the Hungarian method. A second and third round also look at the layers that
read a channel. Factors, shifts and statistics of norms, and biases, take part as well, in units of
the size of their channel: ``-1/2 log(d^2 / 2)`` each, with ``d`` the distance of two of them in
standard deviations.

Only a quarter of the entries of a weight takes part
(:func:`passportize.alignment.held_out.fitting_entries`). From the others likeness and bits are
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.held_out import correlations, fitting_entries, some_columns
from passportize.alignment.scales import ChannelScales
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["Alignment", "align"]

ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Alignment:
    """A suspect in the order, signs and scales of the released weights.

    Attributes:
        tensors: Its tensors by name, weights carried onto the released ones.
        moved: Channels that had another place.
        channels: Channels that could have had one.
    """

    tensors: Mapping[str, Tensor]
    moved: int
    channels: int


def align(
    released: Mapping[str, Tensor], suspect: Mapping[str, Tensor], tied: TiedChannels
) -> Alignment:
    """Carry a suspect's weights onto the released ones.

    Args:
        released: The owner's plain weights, by first name.
        suspect: The suspect's, with the same names and shapes; left as they are.
        tied: What can have been moved.
    """
    search = _Search(released, suspect, tied)
    for late in (False, *(True,) * (ROUNDS - 1)):
        if not search.round(late):
            break
    tensors = {name: search.aligned(name) for name in suspect}
    for alias, first in tied.aliases.items():
        if alias in tensors and first in tensors:
            tensors[alias] = tensors[first]
    moved = sum(
        int((order != torch.arange(len(order))).sum())
        for order in search.orders
        if order is not None
    )
    return Alignment(tensors, moved, sum(group.size for group in tied.groups))


class _Search:
    """The state of a search: what is known so far of places, signs and scales."""

    def __init__(
        self, released: Mapping[str, Tensor], suspect: Mapping[str, Tensor], tied: TiedChannels
    ) -> None:
        self._released, self._tied = released, tied
        self._suspect = {name: _finite(tensor) for name, tensor in suspect.items()}
        self.orders: list[Tensor | None] = [None] * len(tied.groups)
        self._scales = ChannelScales(tied, released, self._suspect)
        self._groups_of: dict[int, list[int]] = {}
        for number, group in enumerate(tied.groups):
            for place, _ in group.places:
                self._groups_of.setdefault(place, []).append(number)
        self._axes_of: dict[str, list[int]] = {}
        for number, axis in enumerate(tied.axes):
            self._axes_of.setdefault(axis.tensor, []).append(number)

    def round(self, late: bool) -> bool:
        """One pass over all groups and signs in the order of the forward pass.

        Args:
            late: Whether layers are known already that read a channel.

        Returns:
            Whether anything changed.
        """
        changed = False
        done: set[int] = set()
        for step in sorted({axis.step for axis in self._tied.axes}):
            for number, group in enumerate(self._tied.groups):
                if number in done or self._tied.axes[group.places[0][0]].step > step:
                    continue
                done.add(number)
                order = self._match(number, late)
                before = self.orders[number]
                if order is not None and (before is None or not torch.equal(order, before)):
                    changed = True
                    self.orders[number] = order
                    self._scales.place(group, order)
            self._scales.set_signs(step, self.aligned, late)
        return changed

    def aligned(self, name: str, skip: int = -1) -> Tensor:
        """A tensor of the suspect as far as it is known; ``skip`` leaves the places of an axis."""
        tensor = self._suspect[name]
        numbers = self._axes_of.get(name)
        if not numbers or not tensor.is_floating_point():
            return tensor
        moved = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)}
        used = {group for number in numbers for group in self._groups_of.get(number, ())}
        orders = [order if at in used else None for at, order in enumerate(self.orders)]
        self._tied.permute(moved, orders, skip)
        if tensor.dim() > 1:
            for number in numbers:
                if number != skip:
                    self._scales.undo(self._tied.axes[number], moved[name])
        return moved[name]

    def _match(self, number: int, late: bool) -> Tensor | None:
        """The order of a group in which the suspect's channels fit best; None if nothing tells."""
        from scipy.optimize import linear_sum_assignment

        group = self._tied.groups[number]
        score = torch.zeros(group.size, group.size)
        seen = False
        for axis, places in group.places:
            gain = None
            if self._released[self._tied.axes[axis].tensor].dim() == 1:
                gain = self._nearness(axis, places)
            elif self._tied.axes[axis].moves and (late or self._ready(axis)):
                gain = self._likeness(axis, places)
            if gain is not None:
                score += gain
                seen = True
        if not seen:
            return None
        return torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])

    def _ready(self, axis: int) -> bool:
        """Whether everything else that counts for the rows of a weight is known."""
        found = self._tied.axes[axis]
        if found.role != "rows":
            return False
        return all(
            self.orders[group] is not None
            for other in self._axes_of[found.tensor]
            if self._tied.axes[other].role == "columns" and self._tied.axes[other].moves
            for group in self._groups_of.get(other, ())
        )

    def _likeness(self, number: int, places: Tensor) -> Tensor | None:
        """Log-likelihood ratio for every channel of the released weights and of the suspect."""
        axis = self._tied.axes[number]
        own = self._released[axis.tensor]
        if own.dim() < 2:
            return None

        def features(tensor: Tensor) -> Tensor:
            part = axis.of(tensor).movedim(axis.dim, 0)
            rows: Tensor = part[places.reshape(-1)].reshape(len(places), -1)
            return rows

        rows, others = features(own.float()), features(self.aligned(axis.tensor, number).float())
        rows, others, chosen = some_columns(rows, others, features(fitting_entries(own.shape)))
        likeness, entries = correlations(rows, others, chosen)
        return -0.5 * entries * torch.log1p(-likeness.square().clamp_max(1 - 1e-6))

    def _nearness(self, number: int, places: Tensor) -> Tensor | None:
        """The same for a number that each channel has; None where all have the same."""
        axis = self._tied.axes[number]
        own, other = (
            self._scales.relative(axis, tensors[axis.tensor], suspect)[places]
            for suspect, tensors in ((False, self._released), (True, self._suspect))
        )
        spread = own.std(0)
        if not bool((spread > 0).all()):
            return None
        distances = torch.zeros(len(places), len(places))
        for entry in range(places.shape[1]):
            pair = own[:, None, entry] - other[None, :, entry]
            near = (pair / spread[entry]).square() / 2
            distances -= 0.5 * near.clamp(1e-6, 1.0).log().float()
        return distances


def _finite(tensor: Tensor) -> Tensor:
    """A tensor without what would spoil every sum it enters."""
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0) if tensor.is_floating_point() else tensor
