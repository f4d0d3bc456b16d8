"""What is written down of a model's channels: the axes on which they lie, factors, attention.

Every channel that a layer makes is an *atom*, a number
(:mod:`passportize.alignment.channels`). Atom 0, :data:`FIXED`, can neither move nor change its
scale; -1, :data:`BLANK`, stands for values that do not change when channels change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["BLANK", "FIXED", "Axis", "Diagonal", "Heads", "SharedKeys", "Table"]

FIXED = 0
BLANK = -1


@dataclass(frozen=True, eq=False)
class Axis:
    """Channels along one dimension of a parameter or buffer.

    Attributes:
        tensor: Its name in the state dict.
        dim: The dimension that counts channels.
        role: What becomes of the entries where their atom ``a`` is multiplied with ``c[a]``:
            ``"rows"`` of a weight and a ``"vector"`` (a bias, say) are multiplied with it,
            ``"columns"`` of a weight divided by it, a ``"mean"`` multiplied, a ``"variance"``
            multiplied with its square, a norm's ``"scale"`` with ``c[a] * sign(c[inputs])``. A
            ``"head"`` is there only to say that its channels stay among themselves.
        atoms: Atom of every entry, int64 ``[entries]``.
        step: Place of the layer in the forward pass.
        first: First entry along ``dim``.
        rows: First and last + 1 entry of dimension 0 that are meant, for a group of a convolution.
        inputs: For a ``"scale"``, the atoms of the norm's input.
        moves: Whether entries have to be moved for this axis; False if another axis of the same
            entries does it.
        cell: Number of the group of a grouped convolution or norm, or of the head of attention,
            whose channels are meant; None where there is no more than one.
        attention: Name of the attention whose head that is; empty for groups of a layer.
    """

    tensor: str
    dim: int
    role: str
    atoms: Tensor
    step: int
    first: int = 0
    rows: tuple[int, int] | None = None
    inputs: Tensor | None = None
    moves: bool = True
    cell: int | None = None
    attention: str = ""

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that is meant, as a view."""
        if self.rows is not None:
            tensor = tensor.narrow(0, self.rows[0], self.rows[1] - self.rows[0])
        return tensor.narrow(self.dim, self.first, len(self.atoms))

    def entries(self, tensor: Tensor, places: Tensor) -> Tensor:
        """The entries of a tensor at some places of the axis, which come first."""
        chosen: Tensor = self.of(tensor).movedim(self.dim, 0)[places.reshape(-1)]
        return chosen

    def reorder(self, tensor: Tensor, places: Tensor, order: Tensor) -> None:
        """Put bundles of entries into another order, in place.

        Args:
            tensor: The tensor.
            places: Entries of each bundle, ``[bundles, entries]``.
            order: Which bundle goes to each place, int64 ``[bundles]``.
        """
        part = self.of(tensor)
        moved = part.index_select(self.dim, places[order].reshape(-1).to(part.device))
        part.index_copy_(self.dim, places.reshape(-1).to(part.device), moved)

    def spread(self, values: Tensor, tensor: Tensor) -> Tensor:
        """One value per entry of the axis, in a shape that broadcasts against :meth:`of`."""
        return values.reshape([-1 if d == self.dim else 1 for d in range(tensor.dim())])


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A factor for each channel: one atom times the factor, and perhaps a shift, is another.

    Attributes:
        kind: ``"norm"`` for the factors behind a norm over channels, which those who read its
            output can take over; ``"statistics"`` for a norm with running statistics, and
            ``"factor"`` for a parameter (LayerScale), which the layer in front can take over.
        before: Atoms of the input, int64 ``[channels]``.
        after: Atoms of the output.
        tensors: Names by attribute: ``weight``, ``bias``, ``running_mean``, ``running_var``.
        first: First entry of these tensors that is meant.
        eps: What is added to the variance.
        step: Place in the forward pass.
        offset: What is added to the weight before it multiplies.
    """

    kind: Literal["norm", "statistics", "factor"]
    before: Tensor
    after: Tensor
    tensors: Mapping[str, str]
    first: int
    eps: float
    step: int
    offset: float = 0.0

    def of(self, mine: Tensor) -> Diagonal | None:
        """The same for some of its channels; None where they do not lie side by side.

        Args:
            mine: Which, bool ``[channels]``, at least one.
        """
        first, count = int(mine.nonzero()[0]), int(mine.sum())
        if not bool(mine[first : first + count].all()):
            return None
        part = slice(first, first + count)
        before, after = self.before[part], self.after[part]
        return replace(self, before=before, after=after, first=self.first + first)

    def factors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The factors in one model, float64 ``[channels]``."""
        count = len(self.before)
        result = torch.ones(count, dtype=torch.float64)
        if "weight" in self.tensors:
            weight = tensors[self.tensors["weight"]].detach().double().cpu().reshape(-1)
            result = weight.narrow(0, self.first, count) + self.offset
        if "running_var" in self.tensors:
            variance = tensors[self.tensors["running_var"]].detach().double().cpu()
            result = (
                result / (variance.narrow(0, self.first, count) + self.eps).clamp_min(1e-300).sqrt()
            )
        return result


@dataclass(frozen=True, eq=False)
class Heads:
    """Channels of attention, head by head.

    Attributes:
        scores: Atom of the weights of each head, int64 ``[heads]``; None where nothing is known of
            what weighs.
        queries: Atoms of which only products with those of ``keys`` are seen, int64
            ``[heads, channels]``; None for values.
        keys: Likewise.
        values: Atoms that are only summed over positions; None for queries and keys.
    """

    scores: Tensor | None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def sides(self) -> list[Tensor]:
        """All that are there."""
        return [side for side in (self.queries, self.keys, self.values) if side is not None]


@dataclass(frozen=True, eq=False)
class SharedKeys:
    """Heads of queries that share keys and values, and change places while these stay.

    Attributes:
        queries: Atoms of each, int64 ``[heads, channels]``.
        keys: Those that all of them meet, ``[channels]``.
        outputs: What each makes of the values, ``[heads, channels]``.
        scores: Atom of the weights of each, ``[heads]``.
    """

    queries: Tensor
    keys: Tensor
    outputs: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class Table:
    """Sums over positions of channels times channels, head by head.

    Attributes:
        marks: Atoms of its first row and of the others, int64 ``[2, heads]``. They stand for the
            table; where they come to be tied to anything, it was put to another use.
        rows: Channels of the one side, int64 ``[heads, channels]``.
        columns: Those of the other.
        scores: Atoms of what has one number for each head, int64 ``[heads]``.
    """

    marks: Tensor
    rows: Tensor
    columns: Tensor
    scores: Tensor
