"""A suspect's tensors with all undone that is known so far: places, matrices, scales and signs."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from passportize.alignment.axes import Axis
from passportize.alignment.folding import Folded, act, is_whole
from passportize.alignment.held_out import HeldOut
from passportize.alignment.matrices import inverse_of
from passportize.alignment.scales import ChannelScales
from passportize.alignment.spaces import Side
from passportize.alignment.tied_channels import TiedChannels
from passportize.utils.precision import at_least_float32

__all__ = ["Undoing"]


class Undoing:
    """What is known so far of a disguise, and the suspect without it.

    Args:
        released: The owner's plain weights, by first name.
        suspect: The suspect's, with the same names and shapes; left as they are.
        tied: What can have been moved.
        held_out: What is not looked at.

    Attributes:
        released: The owner's, folded.
        suspect: The suspect's, folded.
        scales: Factors and signs of channels.
        orders: Which bundle of the suspect is at each place, by number in ``tied.units``; None
            where that is not known.
        matrices: Those that act on each space, ``[blocks, size, size]``; None likewise.
    """

    def __init__(
        self,
        released: Mapping[str, Tensor],
        suspect: Mapping[str, Tensor],
        tied: TiedChannels,
        held_out: HeldOut,
    ) -> None:
        self._tied = tied
        raw = {name: _finite(tensor) for name, tensor in suspect.items()}
        self.released, self.suspect = Folded(tied, released), Folded(tied, raw)
        self.orders: list[Tensor | None] = [None] * len(tied.units)
        self.matrices: list[Tensor | None] = [None] * len(tied.spaces)
        self._inverses: list[Tensor | None] = [None] * len(tied.spaces)
        self.scales = ChannelScales(tied, released, raw, held_out)
        self._exchanges = len(tied.exchanges)
        self._units_of: dict[int, list[int]] = {}
        self._moving: dict[str, list[tuple[int, int, Tensor]]] = {}
        for number, unit in enumerate(tied.units):
            if number - self._exchanges not in tied.replaced:
                for axis_number, places in unit.places:
                    self._units_of.setdefault(axis_number, []).append(number)
                    axis = tied.axes[axis_number]
                    if axis.moves:
                        on = self._moving.setdefault(axis.tensor, [])
                        on.append((number, axis_number, places))
        self._spaces_of: dict[int, list[tuple[int, Side]]] = {}
        for number, space in enumerate(tied.spaces):
            for side in space.sides:
                self._spaces_of.setdefault(side.axis, []).append((number, side))
        self._axes_of: dict[str, list[int]] = {}
        for number, axis in enumerate(tied.axes):
            self._axes_of.setdefault(axis.tensor, []).append(number)
        self._known: dict[tuple[str, int, int], Tensor] = {}
        self._across: dict[tuple[str, int], Tensor] = {}

    def place(self, number: int, order: Tensor) -> None:
        """Take note of the places of a unit's bundles in the suspect."""
        unit = self._tied.units[number]
        self.orders[number] = order
        if number < self._exchanges:
            self.scales.exchange(self.orders[: self._exchanges])
        else:
            self.scales.place(unit, order)
        self._forget((axis for axis, _ in unit.places), number)

    def mix(self, number: int, matrices: Tensor) -> None:
        """Take note of the matrices that act on a space."""
        rotations = self._tied.spaces[number].kind.rotates
        self.matrices[number] = matrices
        self._inverses[number] = matrices.mT if rotations else inverse_of(matrices)
        self._forget(side.axis for side in self._tied.spaces[number].sides)

    def set_signs(self, step: int, late: bool) -> None:
        """Take the signs of the channels that are first made at a step from what is known."""
        if self.scales.set_signs(step, self.matched, late):
            self._known.clear()
            self._across.clear()

    def _forget(self, axes: Iterable[int], unit: int = sys.maxsize) -> None:
        """Drop what is known of tensors along whose axes something was found."""
        on: dict[str, set[int]] = {}
        for axis in axes:
            on.setdefault(self._tied.axes[axis].tensor, set()).add(axis)
        # What left this very axis alone is as before.
        gone = [
            (name, skip, placed)
            for name, skip, placed in self._known
            if name in on and (on[name] != {skip} or unit < placed)
        ]
        for key in gone:
            del self._known[key]
        for name, dim in list(self._across):
            if any(self._tied.axes[axis].dim != dim for axis in on.get(name, ())):
                del self._across[name, dim]

    def matched(self, name: str) -> tuple[Tensor, Tensor]:
        """Both models' values of a tensor, folded, the suspect's as far as it is known."""
        return self.released.tensors[name], self.aligned(name)

    def ready(self, axis: int, guessed: Collection[int] = ()) -> bool:
        """Whether everything else that counts for the entries along an axis is known.

        Args:
            axis: Its number.
            guessed: Numbers of the spaces whose matrices are not taken for known.
        """
        found = self._tied.axes[axis]
        for other in self._axes_of[found.tensor]:
            along = self._tied.axes[other]
            if along.dim == found.dim or not along.moves:
                continue
            if any(self.orders[unit] is None for unit in self._units_of.get(other, ())):
                return False
            spaces = [at for at, _ in self._spaces_of.get(other, ())]
            if any(self.matrices[at] is None or at in guessed for at in spaces):
                return False
        return True

    def along(self, side: Side, tensor: Tensor) -> Tensor:
        """The entries of a side, ``[blocks, size, features]``."""
        blocks, size, _ = side.places.shape
        axis = self._tied.axes[side.axis]
        part = axis.of(tensor).movedim(axis.dim, 0)
        # Most are whole residual streams, which need no copy.
        entries = part if is_whole(side, part) else axis.entries(tensor, side.places)
        return entries.reshape(blocks, size, -1)

    def aligned(self, name: str, skip: int = -1, placed: int | None = None) -> Tensor:
        """A folded tensor of the suspect as far as it is known.

        Args:
            name: Its name.
            skip: Number of an axis to leave alone; what else lies in groups of its layer is then
                left as it is.
            placed: How many of the units are put in their places along that axis all the same; by
                default the exchanges.
        """
        tensor = self.suspect.tensors[name]
        numbers = self._axes_of.get(name)
        if not numbers or not tensor.is_floating_point():
            return tensor
        placed = self._exchanges if placed is None else placed
        known = self._known.get((name, skip, placed))
        if known is not None:
            return known
        axes = [self._tied.axes[number] for number in numbers]
        cell = self._tied.axes[skip].cell if skip >= 0 else None
        if tensor.dim() < 2 or any(axis.rows is not None or axis.cell is not None for axis in axes):
            moved = at_least_float32(tensor, copy=True)
            mine = [n for n in numbers if cell is None or self._tied.axes[n].cell in (None, cell)]
            self._undo(mine, name, moved, skip, placed)
        else:
            moved = self._by_dimension(name, skip, placed)
        self._known[name, skip, placed] = moved
        return moved

    def _by_dimension(self, name: str, skip: int, placed: int) -> Tensor:
        """The same for a tensor whose axes all mean every entry along the other dimensions.

        What is done along one of them then does not disturb what is done along another, and what
        was found without a dimension serves all axes on it: queries, keys and values, say, lie
        along one and read the same stream.
        """
        along: dict[int, list[int]] = {}
        for number in self._axes_of[name]:
            along.setdefault(self._tied.axes[number].dim, []).append(number)
        if skip >= 0:
            dim = self._tied.axes[skip].dim
        else:
            known = [dim for dim in along if (name, dim) in self._across]
            if not known:
                moved = at_least_float32(self.suspect.tensors[name], copy=True)
                self._undo(self._axes_of[name], name, moved, skip, placed)
                return moved
            # The one along which the least is left to be multiplied.
            dim = min(known, key=lambda dim: sum(map(self._work_along, along[dim])))
        across = self._across.get((name, dim))
        if across is None:
            across = at_least_float32(self.suspect.tensors[name], copy=True)
            others = [number for number in self._axes_of[name] if number not in along[dim]]
            self._undo(others, name, across, skip, placed)
            self._across[name, dim] = across
        if along[dim] == [skip] and not self._places(name, along[dim], skip, placed):
            return across
        moved = across.clone()
        self._undo(along[dim], name, moved, skip, placed)
        return moved

    def _undo(
        self, numbers: Sequence[int], name: str, moved: Tensor, skip: int, placed: int
    ) -> None:
        """Undo in a tensor, in place, what is known along some of its axes; see `aligned`."""
        for axis, places, order in self._places(name, numbers, skip, placed):
            axis.reorder(moved, places, order)
        if moved.dim() > 1:
            for number in numbers:
                if number != skip:
                    self._unmix(number, moved)
                    self.scales.undo(self._tied.axes[number], moved)

    def _places(
        self, name: str, numbers: Sequence[int], skip: int, placed: int
    ) -> list[tuple[Axis, Tensor, Tensor]]:
        """What is known to have changed places along some axes, with their orders."""
        return [
            (self._tied.axes[number], places, order)
            for unit, number, places in self._moving.get(name, ())
            if number in numbers
            and (order := self.orders[unit]) is not None
            and (number != skip or unit < placed)
        ]

    def _work_along(self, number: int) -> int:
        """Products of numbers for each entry across an axis that matrices on it take."""
        spaces = [self._tied.spaces[at] for at, _ in self._spaces_of.get(number, ())]
        return sum(space.blocks * space.size**2 for space in spaces)

    def unfolded(self, name: str) -> Tensor:
        """The same in the coordinates of the released weights."""
        return self.released.unfold(name, self.aligned(name))

    def moved(self) -> int:
        """Channels that had another place, or a matrix on them."""
        count = 0
        for number, group in enumerate(self._tied.groups):
            if number not in self._tied.replaced:
                axis, places = group.places[0]
                atoms = self._tied.axes[axis].atoms[places[:, 0]]
                count += int((self.scales.sources(atoms) != atoms).sum())
        for matrices in self.matrices:
            if matrices is not None:
                identity = torch.eye(matrices.shape[1], dtype=matrices.dtype)
                count += int(((matrices - identity).abs().amax(2) > 0.1).sum())
        return count

    def channels(self) -> int:
        """Channels that could have moved."""
        groups = sum(
            group.size
            for number, group in enumerate(self._tied.groups)
            if number not in self._tied.replaced
        )
        return groups + sum(space.size * space.blocks for space in self._tied.spaces)

    def _unmix(self, number: int, tensor: Tensor) -> None:
        """Take the matrices out of one axis of a tensor, in place."""
        axis = self._tied.axes[number]
        for at, side in self._spaces_of.get(number, ()):
            matrices, inverses = self.matrices[at], self._inverses[at]
            if matrices is None or inverses is None:
                continue
            part = axis.of(tensor)
            undoing = inverses if side.writes else matrices.transpose(1, 2)
            act(undoing, side, axis, part)

    def unmixed(self, name: str) -> Tensor:
        """A tensor of the suspect of which nothing is undone but matrices."""
        tensor = self.suspect.tensors[name]
        numbers = [number for number in self._axes_of.get(name, ()) if number in self._spaces_of]
        if not numbers or tensor.dim() < 2:
            return tensor
        result = tensor.clone()
        for number in numbers:
            self._unmix(number, result)
        return result


def _finite(tensor: Tensor) -> Tensor:
    """A tensor without what would spoil every sum it enters."""
    if not tensor.is_floating_point() or bool(tensor.detach().sum().isfinite()):
        return tensor
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0)
