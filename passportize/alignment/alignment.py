"""Undoing a disguise: which channel of a suspect is which channel of the released weights.

Whatever leaves a network's function as it is hides a signature that is read row by row: permuted,
rescaled and mirrored channels, exchanged heads, and matrices on channels that have no meaning of
their own (:mod:`passportize.alignment.spaces`). With the released weights at hand all of it can be
found, in the order of the forward pass, so that the columns of a row are back in place before it
is compared. Two channels are as alike as

    sum over weights of  -D / 2 * log(1 - r^2)

with ``r`` the correlation of their ``D`` entries: the log-likelihood ratio of "one is a multiple of
the other plus noise" against "they have nothing in common", for unknown factor and noise. The best
assignment is that of the Hungarian method. Groups that changed places as wholes are found first,
each channel with its best partner (:mod:`passportize.alignment.exchanges`). A second and third
round also look at the layers that read a channel. Factors, shifts and statistics of norms, and
biases, take part as well, in units of the size of their channel: ``-1/2 log(d^2 / 2)`` each, with
``d`` the distance of two of them in standard deviations. Matrices are found by
:mod:`passportize.alignment.matrices`, heads by :mod:`passportize.alignment.attention_heads`.

Of a weight that carries bits only some entries take part
(:mod:`passportize.alignment.held_out`). From the others likeness and bits are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passportize.alignment.held_out import HeldOut
from passportize.alignment.matching import Matching
from passportize.alignment.similarity import matched_rows
from passportize.alignment.solving import Solving
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.undoing import Undoing
from passportize.alignment.widening import absent_entries
from passportize.utils.progress import Progress

__all__ = ["Alignment", "align", "find_places"]

ROUNDS = 4

_STRANGER = 0.05
"""Mean correlation of held-out entries below which the first matches are no better than chance."""

_FIRST_WEIGHTS = 6
"""Weights with rows to compare that are looked at before a stranger is given up."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A suspect in the coordinates of the released weights.

    Attributes:
        tensors: Its tensors by name, weights carried onto the released ones.
        moved: Channels that had another place, or a matrix on them.
        channels: Channels that could have had one.
        absent: Entries that a suspect with fewer channels has no part in, bool by name.
    """

    tensors: Mapping[str, Tensor]
    moved: int
    channels: int
    absent: Mapping[str, Tensor] = field(default_factory=dict)


def align(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    held_out: HeldOut | None = None,
    present: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> Alignment:
    """Carry a suspect's weights onto the released ones.

    Args:
        released: The owner's plain weights, by first name.
        suspect: The suspect's, with the same names and shapes; left as they are.
        tied: What can have been moved.
        held_out: What is not looked at; by default a part of every weight.
        present: How many channels of each group are the suspect's own, the first ones, where it
            had fewer (:mod:`passportize.alignment.widening`); by default all.
        progress: Called with the steps done and their largest number.
    """
    if held_out is None:
        held_out = HeldOut(tied, {name: tensor.shape for name, tensor in released.items()})
    undoing = _searched(released, suspect, tied, held_out, present=present, progress=progress)
    tensors = {name: undoing.unfolded(name) for name in suspect}
    absent: dict[str, Tensor] = {}
    if present is not None:
        shapes = {name: tensor.shape for name, tensor in released.items()}
        absent = absent_entries(undoing, tied, present, shapes)
        tensors |= {name: tensors[name].masked_fill(mask, 0) for name, mask in absent.items()}
    for alias, first in tied.aliases.items():
        if alias in tensors and first in tensors:
            tensors[alias] = tensors[first]
    return Alignment(tensors, undoing.moved(), undoing.channels(), absent)


def find_places(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    held_out: HeldOut,
    sizes: Sequence[int],
    present: Sequence[int] | None = None,
) -> list[Tensor | None]:
    """Which channels of a wider suspect the released ones are.

    Args:
        released: The owner's weights in the suspect's shapes, the first channels of each group.
        suspect: The suspect's.
        tied: Its channels.
        held_out: What is not looked at, in the suspect's shapes.
        sizes: How many channels of each group are the owner's.
        present: How many are the suspect's own, the first ones; by default all.

    Returns:
        For every group the suspect's channel at each place, those of nobody last; None where
        nothing tells.
    """
    found = _searched(released, suspect, tied, held_out, sizes, present).orders
    return found[len(tied.exchanges) :][: len(tied.groups)]


def _searched(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    held_out: HeldOut,
    sizes: Sequence[int] | None = None,
    present: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Undoing:
    """What a search finds."""
    undoing = Undoing(released, suspect, tied, held_out)
    search = _Search(undoing, tied, held_out, sizes, present, progress)
    for late in (False, *(True,) * (ROUNDS - 1)):
        if not search.round(late) or search.stranger:
            break
    search.finish()
    return undoing


class _Search:
    """A search: what was tried so far to undo."""

    def __init__(
        self,
        undoing: Undoing,
        tied: TiedChannels,
        held_out: HeldOut,
        sizes: Sequence[int] | None,
        present: Sequence[int] | None,
        progress: Progress | None,
    ) -> None:
        self._undoing, self._tied, self._held_out = undoing, tied, held_out
        self._matching = Matching(undoing, tied, held_out, sizes, present)
        self._solving = Solving(undoing, tied, held_out, narrower=present is not None)
        self._steps = self._order_of_steps()
        self._progress, self._done = progress, 0
        self._changes = 0.0
        self._waiting = self._rows_to_compare()
        self._tested: list[tuple[float, int]] = []
        self._judged = self.stranger = False

    def _order_of_steps(self) -> list[tuple[int, list[int], list[int]]]:
        """Units and spaces that are first met at each step of the forward pass."""
        steps: dict[int, tuple[list[int], list[int]]] = {}
        for axis in self._tied.axes:
            steps.setdefault(axis.step, ([], []))
        before = len(self._tied.exchanges)
        for number, unit in enumerate(self._tied.units):
            if number - before not in self._tied.replaced:
                first = min(self._tied.axes[at].step for at, _ in unit.places)
                steps[first][0].append(number)
        for number, space in enumerate(self._tied.spaces):
            first = min(self._tied.axes[side.axis].step for side in space.sides)
            steps[first][1].append(number)
        for units, _ in steps.values():
            # Which head is which comes before where its channels lie in it.
            units.sort(key=self._matching.lies_within)
        return [(step, *found) for step, found in sorted(steps.items())]

    def _rows_to_compare(self) -> list[tuple[int, Tensor]]:
        """Axes of rows that were not all looked at, with their places, in the forward pass."""
        rows = matched_rows(self._tied, self._undoing.released.tensors, self._held_out)
        found = [place for _, places in rows for place in places]
        return sorted(found, key=lambda place: self._tied.axes[place[0]].step)

    def finish(self) -> None:
        """Say that nothing is left to be done; most searches settle before their last round."""
        if self._progress is not None:
            self._progress(self._total, self._total)

    @property
    def _total(self) -> int:
        return max(1, ROUNDS * len(self._steps))

    def round(self, late: bool) -> bool:
        """One pass over all groups, spaces and signs in the order of the forward pass.

        Args:
            late: Whether layers are known already that read a channel.

        Returns:
            Whether anything changed.
        """
        changed = False
        unsettled = late and self._changes > 0.02
        self._changes = 0.0
        for step, units, spaces in self._steps:
            for number in units:
                if number in self._matching.settled:
                    continue
                order = self._matching.match(number, late)
                before = self._undoing.orders[number]
                if order is not None and (before is None or not torch.equal(order, before)):
                    changed = True
                    moved = 1.0 if before is None else float((order != before).double().mean())
                    self._changes = max(self._changes, moved)
                    self._undoing.place(number, order)
            for number in spaces:
                self._solving.meet(number, late, unsettled)
            if not late:
                self._solving.determine()
            self._undoing.set_signs(step, late)
            self._done += 1
            if self._progress is not None and self._done < self._total:
                self._progress(self._done, self._total)
            if not late and self._is_stranger(step):
                self.stranger = True
                break
        return changed

    def _is_stranger(self, step: int) -> bool:
        """Whether the first matches are no better than chance, on entries that were not looked at.

        Whatever comes later in the forward pass is compared by what was found before.
        """
        if self._judged:
            return False
        while self._waiting and self._tied.axes[self._waiting[0][0]].step <= step:
            number, places = self._waiting.pop(0)
            if self._undoing.ready(number):
                self._test(number, places)
        if not self._tested or (self._waiting and len(self._tested) < _FIRST_WEIGHTS):
            return False
        self._judged = True
        total = sum(count for _, count in self._tested)
        stranger = sum(value * count for value, count in self._tested) / total < _STRANGER
        self._matching.alike = not stranger
        return stranger

    def _test(self, number: int, places: Tensor) -> None:
        """How alike rows are on entries that were not looked at, beyond chance."""
        axis = self._tied.axes[number]
        kept = ~self._held_out.fitted(axis.tensor)
        own, other = (
            axis.entries(part * kept, places).flatten(1)
            for part in self._undoing.matched(axis.tensor)
        )
        # Channels that a suspect lacks are zero.
        there = other.any(1)
        if bool(there.any()):
            alike = torch.nn.functional.cosine_similarity(own[there], other[there]).abs()
            chance = (2 / math.pi / max(1, int(kept[0].sum()))) ** 0.5
            self._tested.append((float(alike.mean()) - chance, len(alike)))
