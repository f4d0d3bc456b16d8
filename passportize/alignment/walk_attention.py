"""What attention does to labelled channels: it sees products of tensors, head by head.

Of a product of two tensors three kinds are known, by where their channels lie:

- sums over channels of query times key (scores): any invertible matrix may act on the queries of a
  head if its inverse, transposed, acts on the keys;
- sums over positions of a weight times a value: whatever the weights are, any matrix on the values
  of a head goes through to whatever reads the output;
- sums over positions of one channel times another (cross-covariance, linear attention): a table of
  channels, which weighs channels in turn. Channels of a head can only change places, those that are
  summed over together.

Heads can change places where both factors are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from passportize.alignment.axes import BLANK, FIXED, Heads, SharedKeys, Table
from passportize.alignment.channels import ChannelLabels, first_along_others, thin, varied
from passportize.tracing.graph import argument, shape_of

__all__ = ["ATTENTION_STEPS", "AttentionLabels"]

_PRODUCTS = frozenset({"matmul", "bmm", "rmatmul"})
ATTENTION_STEPS = _PRODUCTS | {"scaled_dot_product_attention"}


class _Channels(NamedTuple):
    """Channels of a factor, head by head.

    Attributes:
        atoms: int64 ``[heads, channels]``.
        head: The dimension that counts heads; None if there is one head.
        dim: The dimension that counts channels.
    """

    atoms: Tensor
    head: int | None
    dim: int


class _Query(NamedTuple):
    """A head of queries, known by the atom of its scores.

    Attributes:
        first: Atom of the scores of the first head that meets the same keys.
        queries: int64 ``[channels]``.
        keys: Likewise.
    """

    first: int
    queries: Tensor
    keys: Tensor


class AttentionLabels:
    """The products that a walk has met, to know them again when they weigh something.

    Args:
        labels: Where to write down what is found.
    """

    def __init__(self, labels: ChannelLabels) -> None:
        self._labels = labels
        self._scores: dict[int, _Query] = {}
        self._tables: dict[int, Table] = {}

    def label(self, node: fx.Node, name: str, found: list[Any]) -> Tensor | None:
        """Labels of the output of a step; None where it is no attention that is understood.

        Args:
            node: The step.
            name: Its name.
            found: Labels of its first tensors: two factors, or queries, keys and values.
        """
        shape = shape_of(node)
        if shape is None or not all(isinstance(value, Tensor) for value in found):
            return None
        if name in _PRODUCTS and len(found) != 2:
            return None
        if name in _PRODUCTS:
            left, right = reversed(found) if name == "rmatmul" else found
            return self._product(left, right, shape)
        if len(found) < 3:
            return None
        queries, keys, values = found[:3]
        if queries.dim() > 2 and argument(node, 7, "enable_gqa", False):
            keys, values = (
                part.repeat_interleave(queries.shape[-3] // part.shape[-3], -3)
                for part in (keys, values)
            )
        scores = self._product(
            queries, keys.transpose(-1, -2), (*queries.shape[:-1], keys.shape[-2])
        )
        if scores is None:
            for side in (queries, keys):
                self._labels.pin(side)
            scores = torch.tensor(FIXED).expand(*shape[:-1], keys.shape[-2])
        mask = argument(node, 3, "attn_mask", None)
        if isinstance(mask, fx.Node):
            self._masked(scores, found[3] if len(found) > 3 else None, shape_of(mask) or ())
        return self._product(scores, values, shape)

    def _masked(self, scores: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> None:
        """What is added to scores: a mask for each head keeps the heads in their places."""
        if len(shape) < 3 or shape[-3] == 1:
            return
        moving = mask is not None and bool((thin(mask) > FIXED).any())
        by_head = mask if moving and mask is not None else torch.tensor(FIXED)
        self._labels.accompany(thin(scores), by_head)

    def _product(self, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        if not (left.dim() == right.dim() == len(shape)) or len(shape) < 2:
            return None
        last = len(shape) - 1
        one, other = _channels_of(left), _channels_of(right)
        for table, factor, first in ((left, other, False), (right, one, True)):
            if (known := self._table(table)) is not None:
                return self._through(known, factor, shape, first) if factor is not None else None
        if one is not None and other is not None:
            if one.dim == last and other.dim == last - 1:
                return self._score(one, other, shape)
            if one.dim == last - 1 and other.dim == last:
                return self._tabled(one, other, shape)
            # Those that are summed over meet what has no channels of its own there.
            if one.dim == last:
                self._labels.pin(one.atoms)
                one = None
            else:
                self._labels.pin(other.atoms)
                other = None
        if other is not None and other.dim == last:
            return self._weighted(left, other, shape)
        if one is not None and one.dim == last - 1:
            return self._weighted(right, one, shape)
        return None

    def _score(self, queries: _Channels, keys: _Channels, shape: tuple[int, ...]) -> Tensor | None:
        """Sums over channels."""
        if keys.head is None and queries.head is not None:
            keys = _Channels(keys.atoms.expand(len(queries.atoms), -1), queries.head, keys.dim)
        if not _fit(queries, keys) or queries.atoms.shape != keys.atoms.shape:
            return None
        labels = self._labels
        if bool((torch.stack([queries.atoms, keys.atoms]) <= FIXED).any()):
            return None
        (own, others), places = _heads(queries.atoms, keys.atoms)
        # Heads that share keys are one, with its queries several times.
        shared = torch.unique(others, dim=0, return_inverse=True)[1]
        first = torch.stack([(shared == at).nonzero()[0, 0] for at in shared])
        fresh = labels.fresh(len(own))
        labels.tie_by_keys(own[first], own)
        labels.tie_by_keys(fresh[first], fresh)
        labels.unscale(fresh)
        for side in (own, others):
            labels.unsize(side)
            labels.read(side)
        labels.mirror(own, others)
        single = torch.unique(first)
        labels.heads.append(Heads(fresh[single], own[single], others[single]))
        firsts = fresh[first].tolist()
        for at, score in enumerate(fresh.tolist()):
            self._scores[score] = _Query(firsts[at], own[at], others[at])
        scores = fresh[places]
        size = [-1 if d == queries.head else 1 for d in range(len(shape))]
        return scores.view(size if queries.head is not None else [1] * len(shape)).expand(shape)

    def _weighted(self, weighing: Tensor, values: _Channels, shape: tuple[int, ...]) -> Tensor:
        """Sums of values over positions, with any weights."""
        found = _heads_of(weighing)
        if found is None:
            self._labels.pin(weighing)
        elif values.head is None and found[1] is not None:
            values = _Channels(values.atoms.expand(len(found[0]), -1), found[1], values.dim)
        atoms = values.atoms
        fits = found is not None and found[1] == values.head and len(found[0]) == len(atoms)
        if found is None or not fits or int(found[0][0]) not in self._scores:
            self._labels.heads.append(Heads(None, values=torch.unique(atoms, dim=0)))
            return _spread(atoms, values, values.dim, shape)
        firsts = torch.tensor([self._scores[score].first for score in found[0].tolist()])
        (scores, own), _ = _heads(firsts[:, None], atoms)
        self._labels.heads.append(Heads(scores[:, 0], values=own))
        return _spread(self._each(found[0], firsts, atoms), values, values.dim, shape)

    def _each(self, scores: Tensor, firsts: Tensor, values: Tensor) -> Tensor:
        """Atoms of the outputs, of their own where several heads weigh the same values."""
        (marks, own), places = _heads(scores[:, None], values)
        alike = torch.stack([firsts[places == at][0] for at in range(len(marks))])
        outputs = own.clone()
        for first in torch.unique(alike).tolist():
            mine = (alike == first).nonzero()[:, 0]
            if len(mine) < 2:
                continue
            heads = [self._scores[score] for score in marks[mine, 0].tolist()]
            queries = torch.stack([head.queries for head in heads])
            if bool((own[mine] != own[mine[0]]).any()):
                made = torch.full_like(own[mine], FIXED)  # values of their own, which stay
            else:
                made = self._labels.fresh(own[mine].numel()).view(len(mine), -1)
                made = torch.where(own[mine] == BLANK, BLANK, made)
                self._labels.tie_by_keys(made, own[mine])
                outputs[mine] = made
            self._labels.shared.append(SharedKeys(queries, heads[0].keys, made, marks[mine, 0]))
        return outputs[places]

    def _tabled(self, rows: _Channels, columns: _Channels, shape: tuple[int, ...]) -> Tensor | None:
        """Sums over positions of one channel times another.

        The first row of the table has an atom of its own, so that a transposition shows.
        """
        if not _fit(rows, columns) or min(shape[-2:]) < 2:
            return None
        labels = self._labels
        (own, others), places = _heads(rows.atoms, columns.atoms)
        marks = labels.fresh(2 * len(own)).view(2, -1)
        labels.tables.append(Table(marks, own, others, labels.fresh(len(own))))
        self._tables.update(dict.fromkeys(marks[0].tolist(), labels.tables[-1]))
        whole = marks[1][places][:, None].repeat(1, shape[-2])
        whole[:, 0] = marks[0][places]
        return _spread(whole, rows, len(shape) - 2, shape)

    def along(self, values: Tensor, dim: int) -> Tensor:
        """Labels of a table as those of a tensor with channels along one dimension alone."""
        known = self._table(values)
        if known is None or dim not in (values.dim() - 1, values.dim() - 2):
            return values
        kept, other = known.rows, known.columns
        if dim == values.dim() - 1:
            kept, other = other, kept
        if len(kept) > 1:
            return values
        self._labels.pin(other)
        size = [1] * values.dim()
        size[dim] = kept.shape[1]
        return kept.reshape(size).expand(values.shape)

    def weighs(self, values: Tensor) -> bool:
        """Whether labels are those of scores."""
        return values.numel() > 0 and int(values[(0,) * values.dim()]) in self._scores

    def scaled(self, found: list[Tensor], shape: tuple[int, ...]) -> Tensor | None:
        """Labels of a table and what has one number for each head; None where there is no such."""
        tables = [value for value in found if self._table(value) is not None]
        others = [value for value in found if self._table(value) is None]
        if len(tables) != 1 or tuple(tables[0].shape) != shape:
            return None
        table = self._table(tables[0])
        assert table is not None
        corners = thin(tables[0])[..., :1, :1]
        scores = table.scores[torch.searchsorted(table.marks[0], corners.contiguous())]
        for value in others:
            if any(dim >= value.dim() - 2 for dim in varied(thin(value))):
                return None
            self._labels.accompany(value, scores)
            self._labels.unscale(value)
        return tables[0]

    def _table(self, values: Tensor) -> Table | None:
        """The table that labels stand for, as it lies now."""
        narrow = thin(values)
        if narrow.dim() < 2 or not narrow.numel():
            return None
        corner = int(narrow[(0,) * narrow.dim()])
        known = self._tables.get(corner)
        if known is None:
            return None
        if narrow.shape[-2] > 1 and int(narrow[(*(0,) * (narrow.dim() - 2), 1, 0)]) != corner:
            return known
        return replace(known, rows=known.columns, columns=known.rows)

    def _through(
        self, table: Table, factor: _Channels, shape: tuple[int, ...], first: bool
    ) -> Tensor | None:
        """Channels weighed by a table; ``first`` if they stand before it."""
        summed, made = (table.rows, table.columns) if first else (table.columns, table.rows)
        last = len(shape) - 1
        if factor.dim != (last if first else last - 1) or factor.atoms.shape != summed.shape:
            return None  # heads that come again for every input are not followed
        labels = self._labels
        labels.accompany(factor.atoms, summed)
        for side in (factor.atoms, table.rows, table.columns):
            labels.stiffen(side)
            labels.unscale(side)
        for side in (table.rows, table.columns):
            labels.heads.append(Heads(table.scores, values=side))
        outputs = labels.fresh(made.numel()).view(made.shape)
        labels.accompany(outputs, made)
        labels.stiffen(outputs)
        labels.unscale(outputs)
        outputs = torch.where(made == BLANK, BLANK, outputs)
        return _spread(outputs, factor, last if first else last - 1, shape)


def _heads(one: Tensor, other: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Two sides of heads without those that come again for every input, and where each went."""
    width = one.shape[1]
    whole, places = torch.unique(torch.cat([one, other], 1), dim=0, return_inverse=True)
    return (whole[:, :width], whole[:, width:]), places


def _fit(one: _Channels, other: _Channels) -> bool:
    return one.head == other.head and len(one.atoms) == len(other.atoms)


def _spread(atoms: Tensor, like: _Channels, dim: int, shape: tuple[int, ...]) -> Tensor:
    """Atoms of every head along two dimensions of a tensor."""
    size = [1] * len(shape)
    size[dim] = atoms.shape[1]
    if like.head is not None:
        size[like.head] = len(atoms)
    return atoms.reshape(size).expand(shape)


def _heads_of(labels: Tensor) -> tuple[Tensor, int | None] | None:
    """Atoms that differ from head to head alone, and the dimension of the heads."""
    narrow = thin(labels)
    along = varied(narrow)
    if len(along) > 1 or any(dim >= labels.dim() - 2 for dim in along):
        return None
    return first_along_others(narrow, along).reshape(-1), along[0] if along else None


def _channels_of(labels: Tensor) -> _Channels | None:
    """Channels of a factor; None where it has none, or they lie otherwise or come twice."""
    narrow = thin(labels)
    dims, last = varied(narrow), labels.dim() - 1
    along = [dim for dim in dims if dim >= last - 1]
    if len(along) != 1 or len(dims) > 2:
        return None
    head = next((dim for dim in dims if dim < last - 1), None)
    narrow = first_along_others(narrow, dims).movedim(along[0], -1)
    atoms = narrow.reshape(-1, narrow.shape[-1])
    heads = torch.unique(atoms, dim=0)
    known = heads[heads > FIXED]
    if bool((atoms == FIXED).any()) or len(torch.unique(known)) < known.numel():
        return None
    return _Channels(atoms, head, along[0])
