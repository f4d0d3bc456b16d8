"""What can become of the channels of attention, once a whole network was followed.

Where nothing sees a channel by itself, any matrix may act within a head, and heads can change
places as wholes. Where something does (a convolution on values, a norm on queries), channels change
places within their head, those of queries with those of keys, and heads are cells as the groups of
a grouped convolution are (:mod:`passportize.alignment.exchanges`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from passportize.alignment.axes import BLANK, FIXED, Axis, Heads
from passportize.alignment.channels import ChannelLabels

__all__ = ["settle_heads", "settle_tables"]


def settle_tables(labels: ChannelLabels) -> None:
    """Pin the channels of tables that were put to a use that is not known.

    Those of a table that went through a step that is not linear are seen by themselves.

    Args:
        labels: What a walk has found; what is pinned is added.
    """
    moving = labels.classes()[0]
    sizes = torch.bincount(moving)
    rigid = labels.rigid
    for table in labels.tables:
        if bool(torch.isin(table.marks, rigid).any()):
            for side in (table.rows, table.columns):
                labels.stiffen(side)
                labels.unscale(side)
        if bool((sizes[moving[table.marks]] > 1).any()):
            labels.pin(table.rows)
            labels.pin(table.columns)


def settle_heads(labels: ChannelLabels, mixed: Callable[[Heads], bool]) -> None:
    """Tie the channels of attention to each other and to their heads.

    Args:
        labels: What a walk has found; relations and axes of heads are added.
        mixed: Whether any matrix may act within these heads.
    """
    free = [mixed(heads) for heads in labels.heads]
    staying = {
        score
        for heads, whole in zip(labels.heads, free, strict=True)
        if heads.scores is not None and not whole
        for score in heads.scores.tolist()
    }
    cells = _Cells(labels, staying)
    pinned = torch.tensor(FIXED)
    for heads, whole in zip(labels.heads, free, strict=True):
        scores = heads.scores
        if scores is not None and staying.isdisjoint(scores.tolist()):
            for side in heads.sides:
                labels.accompany(scores[:, None], side)
            continue
        if scores is not None:
            labels.accompany_in_heads(scores, pinned)
        if not whole:
            if heads.queries is not None and heads.keys is not None:
                labels.accompany(heads.queries, heads.keys)
            cells.keep_apart(heads)
        elif len(heads.sides[0]) > 1 or heads.values is None:
            for side in heads.sides:
                labels.accompany_in_heads(side, pinned)
            cells.add(heads)
    cells.add_numbers()


class _Cells:
    """Heads whose channels are seen by themselves, and which can change places all the same.

    Several of them are one cell where a group of a grouped convolution holds channels of all (the
    scales of EfficientViT).

    Args:
        labels: What a walk has found.
        staying: Atoms of the scores of the heads that are meant.
    """

    def __init__(self, labels: ChannelLabels, staying: set[int]) -> None:
        self._labels = labels
        self._moving = labels.apart()
        self._fixed = int(self._moving[FIXED])
        self._axes = list(labels.axes)
        self._attention: dict[int, str] = {}
        spoilt: set[str] = set()
        known = [h for h in labels.heads if h.scores is not None]
        for heads in known:
            assert heads.scores is not None
            own = [score for score in heads.scores.tolist() if score in staying]
            if not own:
                continue
            names = {self._attention[score] for score in own if score in self._attention}
            name = min(names, default=f"attention {own[0]}")
            if len(names) > 1 or len(own) < len(heads.scores) or not self._distinct(heads):
                spoilt |= names | {name}
            for score in own:
                self._attention.setdefault(score, name)
        self._attention = {s: name for s, name in self._attention.items() if name not in spoilt}
        self._cell = {score: score for score in self._attention}
        self._join([heads for heads in known if self._exchanged(heads)])

    def _distinct(self, heads: Heads) -> bool:
        """Whether all channels and scores can move, those of each head by themselves."""
        assert heads.scores is not None
        for part in (*heads.sides, heads.scores[:, None]):
            own = [torch.unique(self._moving[head[head != BLANK]]) for head in part]
            together = torch.cat(own)
            if len(torch.unique(together)) < len(together) or self._fixed in together.tolist():
                return False
        return True

    def _exchanged(self, heads: Heads) -> bool:
        return heads.scores is not None and int(heads.scores[0]) in self._attention

    def _join(self, exchanged: Sequence[Heads]) -> None:
        """Make one cell of heads that a group of a convolution holds together."""
        head_of = torch.full((int(self._moving.max()) + 1,), -1)
        for heads in exchanged:
            assert heads.scores is not None
            for side in heads.sides:
                real = side != BLANK
                head_of[self._moving[side[real]]] = heads.scores[:, None].expand_as(side)[real]
        together: dict[tuple[str, int], set[int]] = {}
        for axis in self._axes:
            if axis.cell is not None:
                held = head_of[self._moving[axis.atoms]]
                group = together.setdefault((axis.tensor, axis.cell), set())
                group |= set(held[held >= 0].tolist())
        for group in together.values():
            names = {self._cell[score] for score in group}
            for score, name in self._cell.items():
                if name in names:
                    self._cell[score] = min(names)

    def keep_apart(self, heads: Heads) -> None:
        """Channels of each head change places among themselves."""
        for side in heads.sides:
            for head in self._lay(side, heads.scores):
                self._labels.accompany(side[head], torch.tensor(FIXED))

    def add(self, heads: Heads) -> None:
        """Heads with a matrix on the channels of each."""
        if self._exchanged(heads):
            for side in heads.sides:
                self._lay(side, heads.scores)

    def add_numbers(self) -> None:
        """What has one number for each head (factors, tables of distances)."""
        scores = torch.tensor(sorted(self._attention), dtype=torch.int64)
        classes = self._moving[scores]
        for axis in self._axes if len(scores) else ():
            there = torch.isin(self._moving[axis.atoms], classes)
            if bool(there.any()):
                self._lay(scores[:, None], scores, axis)

    def _lay(self, side: Tensor, scores: Tensor | None, on: Axis | None = None) -> list[int]:
        """Axes for the heads of one side; returns those whose channels lie together on none."""
        real = side != BLANK
        heads = torch.arange(len(side))[:, None].expand_as(side)[real]
        # By themselves, or behind a norm by what moves with them.
        for classes in (torch.arange(len(self._moving)), self._moving):
            head_of = torch.full((int(classes.max()) + 1,), -1)
            head_of[classes[side[real]]] = heads
            head_of[classes[FIXED]] = -1
            seen: set[int] = set()
            laid: set[int] = set()
            for axis in [on] if on is not None else self._axes:
                if axis.role not in ("rows", "vector") and on is None:
                    continue
                there = head_of[classes[axis.atoms]]
                for head in torch.unique(there[there >= 0]).tolist():
                    seen.add(head)
                    places = (there == head).nonzero()[:, 0]
                    together = len(places) == int(places[-1] - places[0]) + 1
                    # One axis is enough to tell heads apart: what moves with it lies along.
                    if together and axis.rows is None and head not in laid:
                        self._labels.axes.append(self._of_head(axis, places, scores, head))
                        laid.add(head)
            if seen:
                return sorted(seen - laid)
        return []

    def _of_head(self, axis: Axis, places: Tensor, scores: Tensor | None, head: int) -> Axis:
        """The axis of one head on that of all."""
        cell, name = None, ""
        if scores is not None and (score := int(scores[head])) in self._attention:
            cell, name = self._cell[score], self._attention[score]
        return Axis(
            axis.tensor,
            axis.dim,
            "head",
            axis.atoms[places],
            axis.step,
            axis.first + int(places[0]),
            moves=False,
            cell=cell,
            attention=name,
        )
