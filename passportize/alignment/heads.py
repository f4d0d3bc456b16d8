"""What can become of the channels of attention, once a whole network was followed.

Where nothing sees a channel by itself, any matrix may act within a head, and heads can change
places as wholes. Where something does (a convolution on values, a norm on queries), channels change
places within their head, those of queries with those of keys, and the heads stay.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from passportize.alignment.channels import BLANK, FIXED, Axis, ChannelLabels, Heads

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
    pinned = torch.tensor(FIXED)
    for heads, whole in zip(labels.heads, free, strict=True):
        scores = heads.scores
        if scores is not None and staying.isdisjoint(scores.tolist()):
            for side in heads.sides:
                labels.accompany(scores[:, None], side)
            continue
        if scores is not None:
            labels.accompany(scores, pinned)
        if not whole:
            if heads.queries is not None and heads.keys is not None:
                labels.accompany(heads.queries, heads.keys)
            _keep_apart(labels, heads)
        elif len(heads.sides[0]) > 1 or heads.values is None:
            for side in heads.sides:
                labels.accompany(side, pinned)


def _keep_apart(labels: ChannelLabels, heads: Heads) -> None:
    """Channels of each head change places among themselves."""
    for side in heads.sides:
        head_of = torch.full((labels.count,), -1)
        head_of[side] = torch.arange(len(side))[:, None].expand_as(side)
        head_of[FIXED] = head_of[BLANK] = -1
        carrying = [
            axis
            for axis in labels.axes
            if axis.role in ("rows", "vector") and bool((head_of[axis.atoms] >= 0).any())
        ]
        if not carrying:
            continue
        # One axis is enough to tell heads apart: what moves with it lies along.
        axis = carrying[0]
        there = head_of[axis.atoms]
        for head in torch.unique(there[there >= 0]).tolist():
            entries = (there == head).nonzero()[:, 0]
            first, own = int(entries[0]), axis.atoms[entries]
            if int(entries[-1]) - first + 1 == len(entries) and axis.rows is None:
                first += axis.first
                alone = Axis(axis.tensor, axis.dim, "head", own, axis.step, first, moves=False)
                labels.axes.append(alone)
            else:
                labels.accompany(own, torch.tensor(FIXED))
