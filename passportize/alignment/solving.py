"""Which matrices lead from the released spaces to a suspect's: which sides tell, and when.

What writes a stream first may have fewer columns than the stream has channels; its matrix is half a
guess then, until enough is known of what comes next.
"""

from __future__ import annotations

from collections.abc import Collection

from passportize.alignment.held_out import EQUATIONS, HeldOut
from passportize.alignment.matrices import Pair, explain, find_matrices
from passportize.alignment.spaces import MatrixKind, Side
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.undoing import Undoing

__all__ = ["Solving"]


class Solving:
    """Finds the matrices of spaces, by what is undone so far.

    Args:
        undoing: What is known.
        tied: The channels.
        held_out: What is not looked at.
        narrower: Whether the suspect lacks channels.
    """

    def __init__(
        self, undoing: Undoing, tied: TiedChannels, held_out: HeldOut, narrower: bool
    ) -> None:
        self._undoing, self._tied, self._held_out = undoing, tied, held_out
        self._narrower = narrower
        self._times = [0] * len(tied.spaces)
        self._undetermined: set[int] = set()
        self._guessed: set[int] = set()
        self._again: set[int] = set()

    def meet(self, number: int, late: bool, unsettled: bool) -> None:
        """Find the matrices of a space where the forward pass comes to it.

        Args:
            number: Its number.
            late: Whether layers are known already that read a channel.
            unsettled: Whether channels still change their places.
        """
        # Once all places are settled, more changes hardly anything.
        if (self._times[number] < 2 or unsettled) and self._solve(number, late):
            self._times[number] += 1

    def _solve(self, number: int, late: bool, guessed: Collection[int] = ()) -> bool:
        """Find the matrices of a space; returns whether there is anything to find them from.

        Args:
            number: Its number.
            late: Whether layers are known already that read a channel.
            guessed: Numbers of the spaces whose matrices are not taken for known.
        """
        space = self._tied.spaces[number]
        sides = [side for side in space.sides if self._is_looked_at(side, late, guessed)]
        pairs = [pair for side in sides if (pair := self._pair(side)) is not None]
        if not pairs:
            return False
        if not late:
            self._note(number, sum(pair.own.shape[2] for pair in pairs))
        known = self._undoing.matrices[number]
        if known is not None and explain(known, pairs):
            return True  # of a copy without changes the first look tells all
        matrices = find_matrices(space.kind, pairs)
        self._undoing.mix(number, matrices)
        if space.kind is MatrixKind.LINEAR and space.group is not None:
            self._undoing.scales.measure_again(self._undoing.unmixed)
        return True

    def _note(self, number: int, features: int) -> None:
        """Take note of what is half a guess, and of what is found through it."""
        if features < EQUATIONS * self._tied.spaces[number].size and number not in self._again:
            self._undetermined.add(number)
        if self._undetermined - {number}:
            self._guessed.add(number)

    def determine(self) -> None:
        """Find again what was half a guess, once enough is known, and what was found through it.

        In the first round, so that what comes later is looked at through what is known.
        """
        for number in filter(self._is_determined, tuple(self._undetermined)):
            self._undetermined.discard(number)
            self._again.add(number)
            self._solve(number, late=False, guessed=self._guessed)
        if not self._undetermined:
            for number in sorted(self._guessed):
                self._solve(number, late=False)
            self._guessed.clear()

    def _is_determined(self, number: int) -> bool:
        """Whether enough is known by now along the sides of a space to determine its matrices."""
        space = self._tied.spaces[number]
        sides = [side for side in space.sides if self._is_looked_at(side, False, self._guessed)]
        return sum(map(self._features, sides)) >= EQUATIONS * space.size

    def _is_looked_at(self, side: Side, late: bool, guessed: Collection[int]) -> bool:
        """Whether matrices are found from a side, and what else lies along it is known."""
        axis = self._tied.axes[side.axis]
        name = axis.tensor
        if self._undoing.released.tensors[name].dim() < 2:
            return False
        if self._held_out.holds(name) and (not side.writes or axis.role != "rows"):
            return False
        return late or self._undoing.ready(side.axis, guessed)

    def _features(self, side: Side) -> int:
        """How many columns of a side are looked at."""
        axis = self._tied.axes[side.axis]
        part = axis.of(self._undoing.released.tensors[axis.tensor])
        columns = side.places.shape[2] * part.numel() // part.shape[axis.dim]
        return int(columns * self._held_out.share(axis.tensor))

    def _pair(self, side: Side) -> Pair | None:
        """What both models have along a side that is looked at; None where there is nothing."""
        name = self._tied.axes[side.axis].tensor
        own = self._undoing.released.tensors[name]
        other = self._undoing.aligned(name, side.axis, len(self._tied.units))
        features = [self._undoing.along(side, tensor) for tensor in (own, other)]
        if self._held_out.holds(name):
            chosen = self._undoing.along(side, self._held_out.fitted(name))[0, 0]
            features = [part[:, :, chosen] for part in features]
        if self._narrower:
            # Columns of channels that the suspect lacks.
            there = features[1].any(0).any(0)
            features = [part[:, :, there] for part in features]
        if not bool(features[0].any()):
            return None  # a weight that was left out of both
        return Pair(features[0], features[1], side.writes)
