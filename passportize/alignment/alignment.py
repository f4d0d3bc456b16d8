"""Undoing a disguise: which channel of a suspect is which channel of the released weights.

Whatever leaves a network's function as it is hides a signature that is read row by row: permuted,
rescaled and mirrored channels, exchanged heads, and matrices on channels that have no meaning of
their own (:mod:`passportize.alignment.spaces`). With the released weights at hand all of it can be
found, in the order of the forward pass, so that the columns of a row are back in place before it
is compared. Two channels are as alike as

    sum over weights of  -D / 2 * log(1 - r^2)

with ``r`` the correlation of their ``D`` entries: the log-likelihood ratio of "one is a multiple of
the other plus noise" against "they have nothing in common", for unknown factor and noise. The best
assignment is that of the Hungarian method. A second and third round also look at the layers that
read a channel. Factors, shifts and statistics of norms, and biases, take part as well, in units of
the size of their channel: ``-1/2 log(d^2 / 2)`` each, with ``d`` the distance of two of them in
standard deviations. Matrices are found by :mod:`passportize.alignment.matrices`, heads by
:mod:`passportize.alignment.attention_heads`.

Of a weight that carries bits only some entries take part
(:mod:`passportize.alignment.held_out`). From the others likeness and bits are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.attention_heads import HeadFeatures, match_heads
from passportize.alignment.folding import Folded, act
from passportize.alignment.held_out import HeldOut, correlations, some_columns
from passportize.alignment.matrices import Pair, find_matrices, inverse_of
from passportize.alignment.scales import ChannelScales
from passportize.alignment.spaces import MatrixKind, Side
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["Alignment", "align"]

ROUNDS = 4

_OBVIOUS = 8.0
"""Nats by which a channel's best match leads, from where on no assignment has to be computed."""

_STRANGER = 0.05
"""Mean correlation of held-out entries below which the first matches are no better than chance."""

_FIRST_UNITS = 4
"""Groups and spaces with rows to compare that are looked at before a stranger is given up."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A suspect in the coordinates of the released weights.

    Attributes:
        tensors: Its tensors by name, weights carried onto the released ones.
        moved: Channels that had another place, or a matrix on them.
        channels: Channels that could have had one.
    """

    tensors: Mapping[str, Tensor]
    moved: int
    channels: int


def align(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    held_out: HeldOut | None = None,
) -> Alignment:
    """Carry a suspect's weights onto the released ones.

    Args:
        released: The owner's plain weights, by first name.
        suspect: The suspect's, with the same names and shapes; left as they are.
        tied: What can have been moved.
        held_out: What is not looked at; by default a part of every weight.
    """
    if held_out is None:
        held_out = HeldOut(tied, {name: tensor.shape for name, tensor in released.items()})
    search = _Search(released, suspect, tied, held_out)
    for late in (False, *(True,) * (ROUNDS - 1)):
        if not search.round(late) or search.stranger:
            break
    tensors = {name: search.unfolded(name) for name in suspect}
    for alias, first in tied.aliases.items():
        if alias in tensors and first in tensors:
            tensors[alias] = tensors[first]
    return Alignment(tensors, search.moved(), search.channels())


class _Search:
    """The state of a search: what is known so far of places, signs, scales and matrices."""

    def __init__(
        self,
        released: Mapping[str, Tensor],
        suspect: Mapping[str, Tensor],
        tied: TiedChannels,
        held_out: HeldOut,
    ) -> None:
        self._tied, self._held_out = tied, held_out
        raw = {name: _finite(tensor) for name, tensor in suspect.items()}
        self._released, self._suspect = Folded(tied, released), Folded(tied, raw)
        self._orders: list[Tensor | None] = [None] * len(tied.groups)
        self._matrices: list[Tensor | None] = [None] * len(tied.spaces)
        self._inverses: list[Tensor | None] = [None] * len(tied.spaces)
        self._solved = [0] * len(tied.spaces)
        self._replaced = tied.replaced
        self._scales = ChannelScales(tied, released, raw, held_out)
        self._groups_of: dict[int, list[tuple[int, Tensor]]] = {}
        for number, group in enumerate(tied.groups):
            if number not in self._replaced:
                for axis_number, places in group.places:
                    self._groups_of.setdefault(axis_number, []).append((number, places))
        self._spaces_of: dict[int, list[tuple[int, Side]]] = {}
        for number, space in enumerate(tied.spaces):
            for side in space.sides:
                self._spaces_of.setdefault(side.axis, []).append((number, side))
        self._axes_of: dict[str, list[int]] = {}
        for number, axis in enumerate(tied.axes):
            self._axes_of.setdefault(axis.tensor, []).append(number)
        self._heads = HeadFeatures(tied)
        self._steps = self._order_of_steps()
        self._known: dict[tuple[str, int, bool], Tensor] = {}
        self._settled: set[int] = set()
        self._changes = 0.0
        self._tested: list[tuple[float, int]] = []
        self.stranger = False

    def _order_of_steps(self) -> list[tuple[int, list[int], list[int]]]:
        """Groups and spaces that are first met at each step of the forward pass."""
        steps: dict[int, tuple[list[int], list[int]]] = {}
        for axis in self._tied.axes:
            steps.setdefault(axis.step, ([], []))
        for number, group in enumerate(self._tied.groups):
            if number not in self._replaced:
                steps[self._tied.axes[group.places[0][0]].step][0].append(number)
        for number, space in enumerate(self._tied.spaces):
            first = min(self._tied.axes[side.axis].step for side in space.sides)
            steps[first][1].append(number)
        return [(step, *found) for step, found in sorted(steps.items())]

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
        for step, groups, spaces in self._steps:
            for number in groups:
                if number in self._settled:
                    continue
                order = self._match(number, late)
                before = self._orders[number]
                if order is not None and (before is None or not torch.equal(order, before)):
                    changed = True
                    moved = 1.0 if before is None else float((order != before).double().mean())
                    self._changes = max(self._changes, moved)
                    self._orders[number] = order
                    group = self._tied.groups[number]
                    self._scales.place(group, order)
                    self._forget(axis for axis, _ in group.places)
            for number in spaces:
                # Once all places are settled, more changes hardly anything.
                if self._solved[number] < 2 or unsettled:
                    self._solve(number, late)
            if self._scales.set_signs(step, self._matched, late):
                self._known.clear()
            if not late and self._is_stranger(groups, spaces):
                self.stranger = True
                break
        return changed

    def _is_stranger(self, groups: Sequence[int], spaces: Sequence[int]) -> bool:
        """Whether the first matches are no better than chance, on entries that were not looked at.

        Whatever comes later in the forward pass is compared by what was found before.
        """
        if len(self._tested) >= _FIRST_UNITS:
            return False
        for places in (
            *(self._tied.groups[number].places for number in groups),
            *(
                [(side.axis, side.places[0]) for side in self._tied.spaces[number].sides]
                for number in spaces
                if self._tied.spaces[number].blocks == 1
            ),
        ):
            for axis, where in places:
                found = self._tied.axes[axis]
                compared = found.role == "rows" and self._held_out.compared(found.tensor)
                if compared and self._ready(axis):
                    own, other = self._matched(found.tensor)
                    kept = ~self._held_out.fitted(found.tensor)
                    rows = [found.entries(part * kept, where).flatten(1) for part in (own, other)]
                    alike = torch.nn.functional.cosine_similarity(rows[0], rows[1]).abs()
                    chance = (2 / math.pi / max(1, int(kept[0].sum()))) ** 0.5
                    self._tested.append((float(alike.mean()) - chance, len(alike)))
                    break
        if len(self._tested) < _FIRST_UNITS:
            return False
        total = sum(count for _, count in self._tested)
        return sum(value * count for value, count in self._tested) / total < _STRANGER

    def _forget(self, axes: Iterable[int]) -> None:
        names = {self._tied.axes[axis].tensor for axis in axes}
        for key in [key for key in self._known if key[0] in names]:
            del self._known[key]

    def _matched(self, name: str) -> tuple[Tensor, Tensor]:
        """Both models' values of a tensor, folded, the suspect's as far as it is known."""
        return self._released.tensors[name], self.aligned(name)

    def aligned(self, name: str, skip: int = -1, *, placed: bool = False) -> Tensor:
        """A folded tensor of the suspect as far as it is known.

        Args:
            name: Its name.
            skip: Number of an axis to leave alone.
            placed: Whether channels along that axis are put in their places all the same.
        """
        tensor = self._suspect.tensors[name]
        numbers = self._axes_of.get(name)
        if not numbers or not tensor.is_floating_point():
            return tensor
        known = self._known.get((name, skip, placed))
        if known is not None:
            return known
        moved = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for number in numbers:
            axis = self._tied.axes[number]
            for group, places in self._groups_of.get(number, ()):
                order = self._orders[group]
                if order is not None and axis.moves and (placed or number != skip):
                    axis.reorder(moved, places, order)
        if tensor.dim() > 1:
            for number in numbers:
                if number != skip:
                    self._unmix(number, moved)
                    self._scales.undo(self._tied.axes[number], moved)
        self._known[name, skip, placed] = moved
        return moved

    def unfolded(self, name: str) -> Tensor:
        """The same in the coordinates of the released weights."""
        return self._released.unfold(name, self.aligned(name))

    def moved(self) -> int:
        """Channels that had another place, or a matrix on them."""
        count = sum(
            int((order != torch.arange(len(order))).sum())
            for order in self._orders
            if order is not None
        )
        for matrices in self._matrices:
            if matrices is not None:
                identity = torch.eye(matrices.shape[1], dtype=matrices.dtype)
                count += int(((matrices - identity).abs().amax(2) > 0.1).sum())
        return count

    def channels(self) -> int:
        """Channels that could have moved."""
        groups = sum(
            group.size
            for number, group in enumerate(self._tied.groups)
            if number not in self._replaced
        )
        return groups + sum(space.size * space.blocks for space in self._tied.spaces)

    # --- matrices -------------------------------------------------------------------------------

    def _unmix(self, number: int, tensor: Tensor) -> None:
        """Take the matrices out of one axis of a tensor, in place."""
        axis = self._tied.axes[number]
        for at, side in self._spaces_of.get(number, ()):
            matrices, inverses = self._matrices[at], self._inverses[at]
            if matrices is None or inverses is None:
                continue
            part = axis.of(tensor)
            undoing = inverses if side.writes else matrices.transpose(1, 2)
            part.copy_(act(undoing, side, axis, part))

    def _solve(self, number: int, late: bool) -> None:
        """Find the matrices of a space."""
        space = self._tied.spaces[number]
        pairs = [pair for side in space.sides if (pair := self._pair(side, late)) is not None]
        if not pairs:
            return
        matrices = find_matrices(space.kind, pairs)
        self._solved[number] += 1
        self._matrices[number], self._inverses[number] = matrices, inverse_of(matrices)
        self._forget(side.axis for side in space.sides)
        if space.kind is MatrixKind.LINEAR and space.group is not None:
            self._scales.measure_again(self._unmixed)

    def _unmixed(self, name: str) -> Tensor:
        """A tensor of the suspect of which nothing is undone but matrices."""
        tensor = self._suspect.tensors[name]
        numbers = [number for number in self._axes_of.get(name, ()) if number in self._spaces_of]
        if not numbers or tensor.dim() < 2:
            return tensor
        result = tensor.clone()
        for number in numbers:
            self._unmix(number, result)
        return result

    def _pair(self, side: Side, late: bool) -> Pair | None:
        """What both models have along a side; None where that is not known yet or not looked at."""
        axis = self._tied.axes[side.axis]
        name = axis.tensor
        own = self._released.tensors[name]
        held = self._held_out.holds(name)
        if own.dim() < 2 or (held and (not side.writes or axis.role != "rows")):
            return None
        if not late and not self._ready(side.axis):
            return None
        other = self.aligned(name, side.axis, placed=True)
        features = [self._along(side, tensor) for tensor in (own, other)]
        if held:
            chosen = self._along(side, self._held_out.fitted(name))[0, 0]
            features = [part[:, :, chosen] for part in features]
        return Pair(features[0], features[1], side.writes)

    def _along(self, side: Side, tensor: Tensor) -> Tensor:
        """The entries of a side, ``[blocks, size, features]``."""
        blocks, size, _ = side.places.shape
        entries = self._tied.axes[side.axis].entries(tensor, side.places)
        return entries.reshape(blocks, size, -1)

    # --- places ---------------------------------------------------------------------------------

    def _match(self, number: int, late: bool) -> Tensor | None:
        """The order of a group in which the suspect's channels fit best; None if nothing tells."""
        from scipy.optimize import linear_sum_assignment

        group = self._tied.groups[number]
        score = self._heads_score(number)
        if score is None:
            score = torch.zeros(group.size, group.size)
            seen = False
            plain = []
            for axis, places in group.places:
                found = self._tied.axes[axis]
                if self._released.tensors[found.tensor].dim() == 1:
                    plain.append((axis, places))
                elif found.moves and (late or self._ready(axis)):
                    gain = self._likeness(axis, places)
                    if gain is not None:
                        score += gain
                        seen = True
            order = _obvious(score) if seen else None
            if order is not None:
                self._settled.add(number)
                return order
            for axis, places in plain:
                gain = self._nearness(axis, places)
                if gain is not None:
                    score += gain
                    seen = True
            if not seen:
                return None
        return torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])

    def _heads_score(self, number: int) -> Tensor | None:
        """Likeness of every two heads, where a group is one of heads with matrices on them."""
        parts = self._heads.of_group(number)
        if not parts:
            return None
        score = None
        for first, second in parts:
            gain = match_heads(
                self._head_features(first),
                self._head_features(second) if second is not None else None,
            )
            score = gain if score is None else score + gain
        return self._heads.in_bundles(number, score) if score is not None else None

    def _head_features(self, side: Side) -> tuple[Tensor, Tensor]:
        """What both models have along a side of heads, of what is looked at."""
        name = self._tied.axes[side.axis].tensor
        own, other = self._released.tensors[name], self.aligned(name, side.axis)
        features = [self._along(side, tensor) for tensor in (own, other)]
        if self._held_out.holds(name):
            chosen = self._along(side, self._held_out.fitted(name)).all(0).all(0)
            features = [part[:, :, chosen] for part in features]
        return features[0], features[1]

    def _ready(self, axis: int) -> bool:
        """Whether everything else that counts for the entries along an axis is known."""
        found = self._tied.axes[axis]
        for other in self._axes_of[found.tensor]:
            along = self._tied.axes[other]
            if along.dim == found.dim or not along.moves:
                continue
            if any(self._orders[group] is None for group, _ in self._groups_of.get(other, ())):
                return False
            if any(self._matrices[at] is None for at, _ in self._spaces_of.get(other, ())):
                return False
        return True

    def _likeness(self, number: int, places: Tensor) -> Tensor | None:
        """Log-likelihood ratio for every channel of the released weights and of the suspect."""
        axis = self._tied.axes[number]
        own = self._released.tensors[axis.tensor]
        if own.dim() < 2:
            return None

        def features(tensor: Tensor) -> Tensor:
            return axis.entries(tensor, places).reshape(len(places), -1)

        rows, others = features(own.float()), features(self.aligned(axis.tensor, number).float())
        chosen = features(self._held_out.fitted(axis.tensor))
        rows, others, chosen = some_columns(rows, others, chosen)
        likeness, entries = correlations(rows, others, chosen)
        return -0.5 * entries * torch.log1p(-likeness.square().clamp_max(1 - 1e-6))

    def _nearness(self, number: int, places: Tensor) -> Tensor | None:
        """The same for a number that each channel has; None where all have the same."""
        axis = self._tied.axes[number]
        own, other = (
            self._scales.relative(axis, folded.tensors[axis.tensor], suspect)[places]
            for suspect, folded in ((False, self._released), (True, self._suspect))
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


def _obvious(score: Tensor) -> Tensor | None:
    """The best match of every channel, where all lead clearly and no two are the same."""
    if score.shape[1] < 2:
        return None
    best, at = score.topk(2, dim=1)
    order: Tensor = at[:, 0]
    if float((best[:, 0] - best[:, 1]).min()) < _OBVIOUS or len(torch.unique(order)) < len(order):
        return None
    return order


def _finite(tensor: Tensor) -> Tensor:
    """A tensor without what would spoil every sum it enters."""
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0) if tensor.is_floating_point() else tensor
