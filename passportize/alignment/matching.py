"""Which channel of a suspect is which: how alike every two are, and the best assignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from passportize.alignment.attention_heads import HeadFeatures, match_heads
from passportize.alignment.held_out import (
    FEW_ENTRIES,
    MOST_ENTRIES,
    HeldOut,
    correlations,
    correlations_by_row,
    drawn_columns,
    some_columns,
)
from passportize.alignment.spaces import Side
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.undoing import Undoing

__all__ = ["Matching"]

_Measure: TypeAlias = Callable[[int, Tensor, int, int], Tensor | None]

_OBVIOUS = 8.0
"""Nats by which a channel's best match leads, from where on no assignment has to be computed."""

_BY_CHANCE = 4.0
"""Nats by which one best match of 20 leads at least, where anything tells: 3 among strangers."""

_MANY = 512
"""Channels from which on an assignment takes longer than a look at whether it is worth it."""

_OBVIOUS_HEADS = 0.5
"""The same for heads, whose likeness is 1 for copies of each part and about 0 for others."""


class Matching:
    """Finds the places of a unit's bundles in a suspect, by what is undone so far.

    Args:
        undoing: What is known.
        tied: The channels.
        held_out: What is not looked at.
        sizes: How many channels of each group the released weights have, where the suspect has
            more; by default as many.
        present: How many the suspect has, the first ones, where it has fewer; by default all.

    Attributes:
        settled: Numbers of the units whose places were obvious.
        alike: Whether what was found so far says that the suspect is no stranger.
    """

    def __init__(
        self,
        undoing: Undoing,
        tied: TiedChannels,
        held_out: HeldOut,
        sizes: Sequence[int] | None = None,
        present: Sequence[int] | None = None,
    ) -> None:
        self._undoing, self._tied, self._held_out = undoing, tied, held_out
        self._heads = HeadFeatures(tied)
        self._before = len(tied.exchanges)
        self._sizes = [unit.size for unit in tied.units]
        self._present = list(self._sizes)
        self._behind = self._before + len(tied.groups)
        if sizes is not None:
            self._sizes[self._before : self._behind] = sizes
        if present is not None:
            self._present[self._before : self._behind] = present
        self._lacks = present is not None
        self.settled: set[int] = set()
        self.alike = False

    def match(self, number: int, late: bool) -> Tensor | None:
        """The order of a unit in which the suspect's bundles fit best; None if nothing tells.

        What the suspect has beyond the released channels comes last.
        """
        from scipy.optimize import linear_sum_assignment

        unit, size = self._tied.units[number], self._sizes[number]
        score = self._heads_score(number)
        if score is not None:
            if (order := self._settle(number, score, _OBVIOUS_HEADS)) is not None:
                return order
        else:
            plain = []
            lead = _OBVIOUS * math.sqrt(self._mixed(number))
            for axis, places in self._told_by(number):
                found = self._tied.axes[axis]
                if found.role == "whole":
                    continue
                if self._undoing.released.tensors[found.tensor].dim() == 1:
                    plain.append((axis, places))
                elif found.moves and (late or self._undoing.ready(axis)):
                    # One weight tells all of a copy; what the others say need not be known.
                    if (order := self._at_a_glance(number, axis, places, lead)) is not None:
                        return order
                    gain = self._gain(self._likeness, number, axis, places)
                    if gain is not None:
                        # Rows whose squares overflow resemble nothing.
                        score = _sum(gain.nan_to_num_(0.0), score)
                        if (order := self._settle(number, score, lead)) is not None:
                            return order
            if score is not None and not self.alike and not _tells(score[:size]):
                return torch.arange(unit.size)
            for axis, places in plain:
                gain = self._gain(self._nearness, number, axis, places)
                if gain is not None:
                    score = _sum(gain, score)
            if score is None:
                return None
        # What the suspect lacks resembles nothing.
        score[:, self._present[number] :] = 0.0
        wanted = score[:size].numpy()
        order = torch.from_numpy(linear_sum_assignment(wanted, maximize=True)[1])
        return _completed(order, unit.size)

    def lies_within(self, number: int) -> bool:
        """Whether a unit's bundles are channels, and no heads or groups."""
        within = self._before <= number < self._behind
        return within and not self._heads.of_group(number - self._before)

    def _told_by(self, number: int) -> Sequence[tuple[int, Tensor]]:
        """Where the bundles of a unit lie, as far as that tells which is which."""
        if number < self._behind:
            return self._tied.units[number].places
        # What reads the outputs of heads can have a matrix on it.
        queries = self._tied.query_heads[number - self._behind].queries
        return [(queries.axis, queries.places[..., 0])]

    def _mixed(self, number: int) -> int:
        """How many channels of a bundle can have changed places among themselves.

        Best partners by chance add up among these.
        """
        if number < self._before:
            return self._tied.exchanges[number].atoms.shape[1]
        return 1 if number < self._behind else self._told_by(number)[0][1].shape[1]

    def _settle(self, number: int, score: Tensor, lead: float) -> Tensor | None:
        """The order of a unit, if it is obvious; then it is not looked for again."""
        order = self._seen(number, score, lead)
        if order is not None:
            self.settled.add(number)
        return order

    def _seen(self, number: int, score: Tensor, lead: float) -> Tensor | None:
        """The order of a unit, if it is obvious."""
        unit, size = self._tied.units[number], self._sizes[number]
        if self._present[number] < unit.size:
            return None
        order = _obvious(score[:size], lead)
        return None if order is None else _completed(order, unit.size)

    def _at_a_glance(self, number: int, axis: int, places: Tensor, lead: float) -> Tensor | None:
        """The order of a unit, if a few entries make it obvious and others bear it out.

        Which entries these are anybody can know, and change them alone.
        """
        if self._mixed(number) > 1:
            return None
        parts, size = self._parts(axis, places), self._sizes[number]
        # Of several rows in a bundle the first tells enough.
        own, other, chosen = self._entries(axis, parts[0], self._before)
        columns = drawn_columns(chosen)
        few, others = columns[:FEW_ENTRIES], columns[FEW_ENTRIES : FEW_ENTRIES + MOST_ENTRIES]
        if len(others) < FEW_ENTRIES:
            return None
        score = _ratio(*correlations(own[:, few], other[:, few], chosen[:, few]))
        order = self._seen(number, score.nan_to_num_(0.0), lead)
        if order is None:
            return None
        pairs = own[:size, others], other[order[:size]][:, others], chosen[:size, others]
        if not bool((_ratio(*correlations_by_row(*pairs)) >= lead).all()):
            return None
        self.settled.add(number)
        return order

    def _gain(self, measure: _Measure, number: int, axis: int, places: Tensor) -> Tensor | None:
        """What an axis says of every two bundles of a unit.

        Within a whole the channels can have moved, so each counts with its best partner.
        """
        if self._mixed(number) == 1:
            return measure(axis, places, self._before, self._sizes[number])
        each = measure(axis, places.reshape(-1, 1), number, places.numel())
        if each is None:
            return None
        size, channels = places.shape
        return each.view(size, channels, size, channels).amax(3).sum(1)

    def _heads_score(self, number: int) -> Tensor | None:
        """Likeness of every two heads, where a group is one of heads with matrices on them."""
        group = number - self._before
        # Heads that share keys are in the places of these first.
        placed = self._before if number < self._behind else number
        score = None
        for first, second in self._heads.of_group(group):
            gain = match_heads(
                self._head_features(first, placed),
                self._head_features(second, placed) if second is not None else None,
            )
            score = gain if score is None else score + gain
        return self._heads.in_bundles(group, score) if score is not None else None

    def _head_features(self, side: Side, placed: int) -> tuple[Tensor, Tensor]:
        """What both models have along a side of heads, of what is looked at.

        Of heads that share keys the sum, which stays where they change places.
        """
        name = self._tied.axes[side.axis].tensor
        chosen = self._undoing.along(side, self._held_out.fitted(name))
        together = (-1, side.places.shape[2], chosen.shape[2] // side.places.shape[2])
        looked_at = chosen.all(0).all(0).view(together[1:]).all(0)

        def features(tensor: Tensor) -> Tensor:
            found = self._undoing.along(side, tensor)
            apart = found.view(*found.shape[:2], *together[1:])
            return apart[..., looked_at].sum(2)

        own, other = (
            self._undoing.released.tensors[name],
            self._undoing.aligned(name, side.axis, placed),
        )
        return features(own), features(other)

    def _likeness(self, number: int, places: Tensor, placed: int, _: int) -> Tensor:
        """Log-likelihood ratio for every channel of the released weights and of the suspect."""
        score = None
        for part in self._parts(number, places):
            entries = some_columns(*self._entries(number, part, placed))
            score = _sum(_ratio(*correlations(*entries)), score)
        assert score is not None  # a bundle has entries
        return score

    def _parts(self, number: int, places: Tensor) -> list[Tensor]:
        """The entries of bundles, those apart that need not have changed alike.

        A gate and what it multiplies can lie in one layer, each with a sign of its own.
        """
        if places.shape[1] == 1:
            return [places]
        tied, atoms = self._tied, self._tied.axes[number].atoms[places]
        kinds = torch.stack([tied.scales[atoms], tied.signs[atoms]])
        which = torch.unique(kinds.flatten(0, 1), dim=1, return_inverse=True)[1]
        return [places[:, which == kind] for kind in torch.unique(which)]

    def _entries(self, number: int, places: Tensor, placed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of every channel in both models, and which of them are looked at."""
        axis = self._tied.axes[number]
        own = self._undoing.released.tensors[axis.tensor]

        def features(tensor: Tensor) -> Tensor:
            return axis.entries(tensor, places).reshape(len(places), -1)

        other = self._undoing.aligned(axis.tensor, number, placed)
        rows, others = features(own.float()), features(other.float())
        chosen = features(self._held_out.fitted(axis.tensor))
        if self._lacks:
            chosen = chosen & others.any(0)
        return rows, others, chosen

    def _nearness(self, number: int, places: Tensor, placed: int, size: int) -> Tensor | None:
        """The same for a number that each channel has; None where all have the same."""
        axis = self._tied.axes[number]
        models, name = self._undoing, axis.tensor
        own = models.scales.relative(axis, models.released.tensors[name])[places]
        other = models.scales.relative(axis, models.aligned(name, number, placed), placed)[places]
        spread = own[:size].std(0)
        if not bool((spread > 0).all()):
            return None
        distances = torch.zeros(len(places), len(places))
        for entry in range(places.shape[1]):
            pair = own[:, None, entry] - other[None, :, entry]
            near = (pair / spread[entry]).square() / 2
            distances -= 0.5 * near.clamp(1e-6, 1.0).log().float()
        return distances


def _ratio(correlation: Tensor, entries: Tensor) -> Tensor:
    """Log-likelihood ratios, in place of correlations over so many entries."""
    left = correlation.square_().clamp_max_(1 - 1e-6).neg_()
    return left.log1p_().mul_(-0.5 * entries)


def _sum(gain: Tensor, score: Tensor | None) -> Tensor:
    """What was said last and before, in the memory of the last: fresh memory takes longer."""
    return gain if score is None else gain.add_(score)


def _completed(order: Tensor, size: int) -> Tensor:
    """An order with the channels that are not in it at its end."""
    left = torch.ones(size, dtype=torch.bool)
    left[order] = False
    return torch.cat([order, left.nonzero()[:, 0]])


def _tells(score: Tensor) -> bool:
    """Whether best matches lead by more than they do among strangers."""
    if len(score) < _MANY:
        return True
    best = score.topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).quantile(0.95)) >= _BY_CHANCE


def _obvious(score: Tensor, lead: float) -> Tensor | None:
    """The best match of every channel, where all lead by so much and no two are the same."""
    if score.shape[1] < 2:
        return None
    best, at = score.topk(2, dim=1)
    order: Tensor = at[:, 0]
    if float((best[:, 0] - best[:, 1]).min()) < lead or len(torch.unique(order)) < len(order):
        return None
    return order
