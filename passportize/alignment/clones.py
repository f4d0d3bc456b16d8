"""What channels compute, as far as weights tell: which are clones, and which are not read.

Of every channel of a group the inner products with the others are known, ``G[i, j] = w_i . w_j``
over all entries that write them; a norm with running statistics multiplies them with its factors, a
depthwise convolution with the products of its kernels, and sums of several writers add up. Two
channels are clones where ``G`` and what is constant in them say that one is a multiple of the
other: by a positive factor, by any where the way is odd, by one where it has no scale. That takes
no released weights, so it is the same for a copy and for a stranger.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.axes import Diagonal
from passportize.alignment.tied_channels import TiedChannels, TiedGroup

__all__ = ["GroupReading", "Level", "Levels"]


@dataclass(eq=False)
class Level:
    """Channels at one place of their way, float64.

    Attributes:
        products: What varies, ``[n, n]``.
        constant: What does not, ``[n]``.
    """

    products: Tensor
    constant: Tensor

    def together(self) -> Tensor:
        """Products of all that a channel is."""
        return self.products + torch.outer(self.constant, self.constant)


Levels = dict[int, Level]
"""Channels by class of scale: at every place of their way."""


class GroupReading:
    """One group of channels: who writes them, who reads them, and what happens in between.

    Args:
        tied: The channels of a model.
        group: One of its groups.
    """

    def __init__(self, tied: TiedChannels, group: TiedGroup) -> None:
        self._tied, self._group = tied, group
        self._diagonals: list[tuple[Diagonal, Tensor]] = []
        self._readers: list[tuple[int, Tensor, int]] = []
        self._inputs: dict[str, int] = {}
        self._biases: set[str] = set()
        self.known = self._understood()

    def _understood(self) -> bool:
        """Whether all that a group lies on is understood."""
        axes = self._tied.axes
        here = {number for number, _ in self._group.places}
        written = {axes[n].tensor.rpartition(".")[0] for n in here if axes[n].role == "rows"}
        norms: set[str] = set()
        for diagonal in self._tied.diagonals:
            names = set(diagonal.tensors.values())
            found = [
                places[:, 0]
                for number, places in self._group.places
                if axes[number].tensor in names and axes[number].first == diagonal.first
            ]
            if found and diagonal.kind == "norm":
                return False
            if found:
                self._diagonals.append((diagonal, found[0]))
                norms |= names
        for number, places in self._group.places:
            axis = axes[number]
            if axis.role != "columns" and places.shape[1] != 1:
                return False
            if axis.role == "columns" and axis.moves:
                self._readers.append((number, places, self._level(axis.atoms[places[0]])))
            elif axis.role == "columns":
                self._inputs[axis.tensor] = self._level(axis.atoms[places[0]])
            elif axis.role == "vector" and axis.tensor not in norms:
                if axis.tensor.rpartition(".")[0] not in written:
                    return False
                self._biases.add(axis.tensor)
            elif axis.role != "rows" and axis.tensor not in norms:
                return False
        return bool(self._readers)

    def _level(self, atoms: Tensor) -> int:
        return int(self._tied.scales[atoms.reshape(-1)[0]])

    def levels(self, tensors: Mapping[str, Tensor]) -> Levels:
        """The channels at every place of their way, in one model, by first name of its tensors."""
        size = self._group.size
        levels: Levels = {}

        def at(level: int) -> Level:
            zeros = torch.zeros(size, size, dtype=torch.float64)
            return levels.setdefault(level, Level(zeros, zeros[0].clone()))

        def write(number: int, places: Tensor) -> None:
            axis = self._tied.axes[number]
            rows = axis.entries(tensors[axis.tensor], places).double().reshape(size, -1)
            level = at(self._level(axis.atoms[places[0]]))
            if axis.tensor in self._biases:
                level.constant += rows[:, 0]
            elif axis.tensor in self._inputs:
                before = at(self._inputs[axis.tensor])
                level.products += before.products * (rows @ rows.t())
                level.constant += before.constant * rows.sum(1)
            else:
                level.products += rows @ rows.t()

        def pass_on(diagonal: Diagonal, places: Tensor) -> None:
            factors = diagonal.factors(tensors)[places]
            before = at(self._level(diagonal.before[places]))
            constant = before.constant
            if "running_mean" in diagonal.tensors:
                constant = constant - _part(tensors, diagonal, "running_mean")[places]
            constant = constant * factors
            if diagonal.kind == "statistics" and "bias" in diagonal.tensors:
                constant = constant + _part(tensors, diagonal, "bias")[places]
            after = at(self._level(diagonal.after[places]))
            after.products += before.products * torch.outer(factors, factors)
            after.constant += constant

        events: list[tuple[int, Callable[[], None]]] = []
        for number, places in self._group.places:
            axis = self._tied.axes[number]
            if axis.role == "rows" or axis.tensor in self._biases:
                events.append((axis.step, functools.partial(write, number, places)))
        for diagonal, places in self._diagonals:
            events.append((diagonal.step, functools.partial(pass_on, diagonal, places)))
        for _, happens in sorted(events, key=lambda event: event[0]):
            happens()
        return levels

    def clones(self, levels: Levels) -> tuple[Tensor, dict[int, Tensor]]:
        """How far every two channels are from being clones of each other.

        Args:
            levels: From :meth:`levels`.

        Returns:
            The squared rest of a channel (column) less its best multiple of another (row), in units
            of its own square, ``[n, n]``: the largest of all places where it is read; and what one
            unit of the other counts for in units of the row's channel, by axis of the reader.
        """
        rest = torch.zeros(self._group.size, self._group.size, dtype=torch.float64)
        passed = {self._level(diagonal.before[places]) for diagonal, places in self._diagonals}
        passed |= set(self._inputs.values())
        read = {level for _, _, level in self._readers}
        ratios: dict[int, Tensor] = {}
        for number, level in levels.items():
            if number in passed and number not in read:
                continue
            products = level.together()
            squares = products.diagonal()
            if number in read and bool(self._tied.free[number]):
                lengths = torch.outer(squares, squares).clamp_min(1e-300).sqrt()
                cosine = products / lengths
                if not bool(self._tied.signed[number]):
                    cosine = cosine.clamp_min(0)
                apart = 1 - cosine.square()
                sizes = squares.sqrt()
                ratios[number] = cosine.sign() * sizes / sizes[:, None].clamp_min(1e-150)
            else:
                # Of another size it would be another function: a gate, or a step like GELU.
                apart = squares[:, None] + squares - 2 * products
                apart = apart / squares.clamp_min(1e-300)
                ratios[number] = torch.ones_like(products)
            apart = apart.clamp_min(0)
            apart[squares <= 0] = torch.inf
            apart[:, squares <= 0] = torch.inf
            rest = torch.maximum(rest, apart)
        if not all(level in levels for level in read):
            rest.fill_(torch.inf)
        factors = {axis: ratios[level] for axis, _, level in self._readers if level in ratios}
        return rest, factors

    def weights(self, tensors: Mapping[str, Tensor], levels: Levels) -> Tensor:
        """How much of what is read comes from each channel, 1 on average, ``[n]``.

        Squared, in units of what each reader gets from the whole group, the most of all readers.
        What is constant in a channel is not counted: it could as well stand in a bias.
        """
        most = torch.zeros(self._group.size, dtype=torch.float64)
        for number, places, level in self._readers:
            axis = self._tied.axes[number]
            size, copies = places.shape
            entries = axis.entries(tensors[axis.tensor], places).double()
            parts = entries.reshape(size, copies, entries.shape[1], -1).square().sum((1, 3))
            if level in levels:
                parts = parts * levels[level].products.diagonal()[:, None]
            whole = parts.sum(0)
            shares = (parts / whole.clamp_min(1e-300))[:, whole > 0]
            if shares.shape[1]:
                most = torch.maximum(most, shares.mean(1) * int((parts.sum(1) > 0).sum()))
        return most

    def merge(
        self, tensors: Mapping[str, Tensor], into: int, clone: int, ratio: Mapping[int, Tensor]
    ) -> None:
        """Let one channel be read for another as well, in place; the other stays.

        Args:
            tensors: Those of a model.
            into: The channel that takes over.
            clone: The one that it replaces.
            ratio: From :meth:`clones`.
        """
        for number, places, _ in self._readers:
            axis = self._tied.axes[number]
            part = axis.of(tensors[axis.tensor]).movedim(axis.dim, 0)
            factor = float(ratio[number][into, clone])
            part[places[into]] += part[places[clone]] * factor

    def clear(self, tensors: Mapping[str, Tensor], channels: Tensor) -> None:
        """Set all that belongs to some channels to zero, in place."""
        for number, places in self._group.places:
            axis = self._tied.axes[number]
            axis.of(tensors[axis.tensor]).movedim(axis.dim, 0)[places[channels].reshape(-1)] = 0


def _part(tensors: Mapping[str, Tensor], diagonal: Diagonal, key: str) -> Tensor:
    tensor = tensors[diagonal.tensors[key]].detach().double().cpu()
    return tensor.narrow(0, diagonal.first, len(diagonal.before))
