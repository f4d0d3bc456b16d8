"""Channels that a whole matrix may act on without changing what a network computes.

Where a tensor is only added to, averaged over positions, normalised over its channels and
multiplied with weights, its channels have no meaning of their own: ``M`` may act on what writes
them and the inverse of ``M`` on what reads them. A norm in between takes over no factor, so its
factors are folded into the readers first, those of LayerScale and of a norm with running statistics
into the writers. Which matrices may act:

- any orthogonal one before an RMSNorm;
- one that keeps the vector of ones as well before a LayerNorm or a GroupNorm of one group;
- any invertible one where there is no norm over channels (linear bottlenecks, and the values,
  queries and keys of every head of attention);
- an orthogonal one on queries and keys of which the length is taken away;
- a rotation with a factor on each pair of channels that rotary embeddings turn: both turn in one
  plane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from passportize.alignment.axes import FIXED, Axis, Diagonal, Heads
from passportize.alignment.channels import ChannelLabels, marked

__all__ = ["MatrixKind", "MatrixSpace", "Side", "find_spaces", "fold_factors"]


class MatrixKind(Enum):
    """Which matrices may act."""

    LINEAR = "any invertible matrix"
    ORTHOGONAL = "rotations"
    CENTRED = "rotations that keep the vector of ones"
    ROTARY = "a rotation and a factor for pairs of channels"

    @property
    def rotates(self) -> bool:
        """Whether the inverse is the transpose."""
        return self in (MatrixKind.ORTHOGONAL, MatrixKind.CENTRED)


@dataclass(frozen=True, eq=False)
class Side:
    """Channels of a space along one axis of a tensor.

    Attributes:
        axis: Number of the axis.
        places: Its entries, int64 ``[blocks, size, copies]``: the same matrix acts on every copy.
        writes: Whether ``M`` acts on it; else the transposed inverse of ``M`` does.
    """

    axis: int
    places: Tensor
    writes: bool


@dataclass(frozen=True, eq=False)
class MatrixSpace:
    """Channels on which a matrix may act.

    Attributes:
        kind: Which matrices may.
        size: Number of channels.
        blocks: How many matrices act beside each other: one for each head.
        sides: Where the channels lie, in the order of the forward pass.
        diagonals: Factors that have to be folded first.
        group: Number of the group of permutations that this replaces; None if there is none.
    """

    kind: MatrixKind
    size: int
    blocks: int
    sides: tuple[Side, ...]
    diagonals: tuple[Diagonal, ...]
    group: int | None


def find_spaces(
    labels: ChannelLabels,
    axes: Sequence[Axis],
    groups: Sequence[Sequence[tuple[int, Tensor]]],
    moving: Tensor,
    scales: Tensor,
) -> tuple[MatrixSpace, ...]:
    """The spaces of a model, in the order of the forward pass.

    Args:
        labels: What a walk over the model has found.
        axes: Its axes, in the order of the forward pass.
        groups: The places of every group of permutations, as in
            :class:`~passportize.alignment.tied_channels.TiedGroup`.
        moving: Class of atoms that move together.
        scales: Class of atoms of one scale, which are one and the same channel.
    """
    search = _Search(labels, axes, moving, scales)
    spaces = [search.stream(number, places) for number, places in enumerate(groups)]
    found = [space for space in spaces if space is not None]
    # The values of a single head are a group of channels, too.
    known = {_lying(space) for space in found}
    of_heads = [space for heads in labels.heads if (space := search.heads(heads)) is not None]
    found += [space for space in of_heads if _lying(space) not in known]
    return tuple(sorted(found, key=lambda space: space.sides[0].axis))


def mixed_heads(labels: ChannelLabels) -> Callable[[Heads], bool]:
    """Tells of channels of attention whether more than permutations may act within a head.

    Args:
        labels: What a walk over the model has found.
    """
    scales = labels.scales()
    search = _Search(labels, labels.axes, scales, scales)
    return lambda heads: search.heads(heads) is not None


def fold_factors(
    spaces: Sequence[MatrixSpace],
    axes: Sequence[Axis],
    scales: Tensor,
    tensors: Mapping[str, Tensor],
) -> dict[int, Tensor]:
    """What each axis is multiplied with when factors are folded, float64, by number of the axis.

    Args:
        spaces: From :func:`find_spaces`.
        axes: The axes.
        scales: Class of one scale of every atom.
        tensors: Tensors of one model by first name.
    """
    written = torch.ones(int(scales.max()) + 1, dtype=torch.float64)
    read = written.clone()
    result: dict[int, Tensor] = {}
    for space in spaces:
        for diagonal in reversed(space.diagonals):
            if diagonal.kind != "norm":
                after = written[scales[diagonal.after]]
                written[scales[diagonal.before]] = after * diagonal.factors(tensors)
        for diagonal in space.diagonals:
            if diagonal.kind == "norm":
                before = read[scales[diagonal.before]]
                read[scales[diagonal.after]] = before * diagonal.factors(tensors)
    for space in spaces:
        for side in space.sides:
            places = side.places.flatten()
            classes = scales[axes[side.axis].atoms[places]]
            factors = written[classes] if side.writes else read[classes]
            if bool((factors != 1).any()):
                count = len(axes[side.axis].atoms)
                whole = result.setdefault(side.axis, torch.ones(count, dtype=torch.float64))
                whole[places] = factors
    return result


class _Search:
    """Finds spaces among groups and heads."""

    def __init__(
        self, labels: ChannelLabels, axes: Sequence[Axis], moving: Tensor, scales: Tensor
    ) -> None:
        self._axes, self._moving, self._scales = axes, moving, scales
        count = int(scales.max()) + 1
        self._rigid_moving = marked(moving[labels.rigid], int(moving.max()) + 1)
        self._rigid = marked(scales[labels.rigid], count)
        self._diagonals = labels.diagonals
        identity = torch.arange(count)
        self._written, self._read = identity.clone(), identity.clone()
        for diagonal in self._diagonals:
            before, after = scales[diagonal.before], scales[diagonal.after]
            forth = self._written if diagonal.kind != "norm" else self._read
            one, other = (before, after) if diagonal.kind != "norm" else (after, before)
            # A channel that two steps take over would need two factors.
            twice = (forth[one] != one) & (forth[one] != other)
            self._rigid_moving[moving[diagonal.before[twice]]] = True
            forth[one] = other
        self._written, self._read = _followed(self._written), _followed(self._read)
        self._normed = {
            MatrixKind.CENTRED: marked(_classes(labels.centred, scales), count),
            MatrixKind.ORTHOGONAL: marked(_classes(labels.spherical, scales), count),
        }
        self._of_norms = {
            name for diagonal in self._diagonals for name in diagonal.tensors.values()
        }
        lying = [scales[axis.atoms] for axis in axes]
        self._lying = torch.cat(lying) if lying else torch.zeros(0, dtype=torch.int64)
        self._axis_of = torch.arange(len(lying)).repeat_interleave(
            torch.tensor([len(part) for part in lying], dtype=torch.int64)
        )

    def _numbers(self, classes: Tensor) -> list[int]:
        """Numbers of the axes on which some classes lie."""
        wanted = marked(classes, len(self._rigid))
        found: list[int] = torch.unique(self._axis_of[wanted[self._lying]]).tolist()
        return found

    def stream(self, number: int, places: Sequence[tuple[int, Tensor]]) -> MatrixSpace | None:
        """The space of a group whose bundles are single channels of one tensor."""
        first = self._axes[places[0][0]].atoms[places[0][1]]
        if bool(self._rigid_moving[self._moving[first]].any()):
            return None
        sides, bases = [], []
        for at, where in places:
            axis = self._axes[at]
            if axis.tensor in self._of_norms or axis.role == "head":
                continue
            writes = axis.role != "columns"
            if not axis.moves or axis.role not in ("rows", "vector", "columns"):
                return None
            classes = self._scales[axis.atoms[where]]
            base = (self._written if writes else self._read)[classes]
            bases.append(base)
            sides.append(Side(at, where[None], writes))
        if not any(side.writes for side in sides) or all(side.writes for side in sides):
            return None
        base = bases[0][:, :1]
        if any(bool((other != base).any()) for other in bases):
            return None
        base = base[:, 0]
        if len(torch.unique(base)) < len(base):
            return None
        own = torch.unique(self._moving[first])
        diagonals = []
        for diagonal in self._diagonals:
            # A norm may have channels of several spaces.
            mine = torch.isin(self._moving[diagonal.before], own)
            if not bool(mine.any()):
                continue
            part = diagonal.of(mine)
            if part is None:
                return None
            side = part.after if part.kind != "norm" else part.before
            through = self._written if part.kind != "norm" else self._read
            if not bool(torch.isin(through[self._scales[side]], base).all()):
                return None
            diagonals.append(part)
        kind = MatrixKind.LINEAR
        levels = torch.unique(self._scales[torch.isin(self._moving, self._moving[first])])
        for which in (MatrixKind.ORTHOGONAL, MatrixKind.CENTRED):
            marked = self._normed[which]
            if bool(marked[levels].any()):
                if not bool(marked[base].all()) or bool(marked[levels].sum() > len(base)):
                    return None
                kind = which
        return MatrixSpace(kind, len(base), 1, tuple(sides), tuple(diagonals), number)

    def heads(self, heads: Heads) -> MatrixSpace | None:
        """The space of values, or of queries and keys, of attention."""
        atoms = torch.stack(heads.sides)
        if bool((atoms <= FIXED).any()):
            return None
        classes = self._scales[atoms]
        if bool(self._normed[MatrixKind.CENTRED][classes].any()):
            return None
        if bool(self._rigid[classes].any()):
            return self._turned(classes) if heads.values is None else None
        marked = self._normed[MatrixKind.ORTHOGONAL][classes]
        if bool(marked.any()) and not bool(marked.all()):
            return None
        sides = self._sides(classes)
        if sides is None:
            return None
        roles = {(self._axes[side.axis].role, side.writes) for side in sides}
        if not roles or (heads.values is not None and ("columns", False) not in roles):
            return None
        kind = MatrixKind.ORTHOGONAL if bool(marked.any()) else MatrixKind.LINEAR
        blocks, size = classes.shape[1:]
        return MatrixSpace(kind, size, blocks, tuple(sides), (), None)

    def _turned(self, classes: Tensor) -> MatrixSpace | None:
        """The space of queries and keys that rotary embeddings turn, pair by pair.

        The two channels of a pair are added to each other, so they are of one class.
        """
        pairs = classes[:, :, :, None] == classes[:, :, None, :]
        if not bool((pairs.sum(3) == 2).all()) or bool((pairs != pairs[0, :1]).any()):
            return None
        size = classes.shape[2]
        first = pairs[0, 0].long().argmax(1) == torch.arange(size)
        sides = self._sides(classes[:, :, first].reshape(2, -1, 1), paired=True)
        if not sides or any(self._axes[side.axis].role == "columns" for side in sides):
            return None
        blocks = sides[0].places.shape[0]
        return MatrixSpace(MatrixKind.ROTARY, 2, blocks, tuple(sides), (), None)

    def _sides(self, classes: Tensor, paired: bool = False) -> list[Side] | None:
        """Where channels lie that are of some classes, ``[parts, blocks, size]``.

        What acts on the first part acts on the second, if there is one, by its inverse.

        Several entries of one class are copies, or the two channels of a pair.
        """
        sides = []
        for part, acts in zip(classes, (True, False), strict=False):
            for number in self._numbers(part):
                axis = self._axes[number]
                if axis.role == "head":
                    continue
                if axis.role not in ("rows", "vector", "columns") or not axis.moves:
                    return None
                lying, order = torch.sort(self._scales[axis.atoms], stable=True)
                wanted = part.contiguous()
                first = torch.searchsorted(lying, wanted)
                counts = torch.searchsorted(lying, wanted, right=True) - first
                count = int(counts.flatten()[0])
                if bool((counts != count).any()) or not count or (paired and count % 2):
                    return None
                places = order[first[..., None] + torch.arange(count)]
                if paired:
                    # The channels of every pair lie one after the other, head by head.
                    places = places.view(len(places), -1, 2).transpose(1, 2)
                sides.append(Side(number, places, acts != (axis.role == "columns")))
        sides.sort(key=lambda side: side.axis)
        return sides


def _lying(space: MatrixSpace) -> frozenset[tuple[int, frozenset[int]]]:
    """Where the channels of a space lie."""
    return frozenset((side.axis, frozenset(side.places.flatten().tolist())) for side in space.sides)


def _followed(step: Tensor) -> Tensor:
    """Where a chain of steps ends."""
    while not torch.equal(further := step[step], step):
        step = further
    return step


def _classes(atoms: Sequence[Tensor], scales: Tensor) -> Tensor:
    return scales[torch.cat([torch.zeros(0, dtype=torch.int64), *atoms])]
