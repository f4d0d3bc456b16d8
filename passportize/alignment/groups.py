"""Bundles of channels by the axes on which they lie, and what can change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from passportize.alignment.axes import FIXED, Axis
from passportize.alignment.channels import marked

__all__ = ["Bundles", "Exchange", "Lying", "TiedGroup", "find_bundles", "find_groups"]

Lying: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
"""The axes on which a bundle lies, with its entries there."""


@dataclass(frozen=True, eq=False)
class TiedGroup:
    """Bundles of channels that can change places with each other.

    Attributes:
        size: Number of bundles.
        places: For every axis on which they lie, its number and the entries of each bundle, int64
            ``[size, entries per bundle]``.
    """

    size: int
    places: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Exchange(TiedGroup):
    """Groups of a grouped convolution or norm that can change places as wholes.

    A bundle is all channels of one such group, those that it reads and those that it makes. Within
    it every channel keeps its place; what moves them there is a tied group.

    Attributes:
        atoms: The channels of each bundle, in the same order in all, int64 ``[size, channels]``.
    """

    atoms: Tensor


@dataclass(frozen=True, eq=False)
class Bundles:
    """What can move, in the order of the forward pass.

    Attributes:
        numbers: Number of every bundle, the class of its atoms, int64 ``[bundles]``.
        bundle: Which bundle each entry belongs to, by its place in ``numbers``, ascending, int64
            ``[entries]``.
        axis: The axis of each entry, ascending within a bundle.
        entry: Its place on the axis, likewise.
        axes: Number of axes of the model.
    """

    numbers: Tensor
    bundle: Tensor
    axis: Tensor
    entry: Tensor
    axes: int

    def lying(self) -> dict[int, Lying]:
        """Where every bundle lies, by its number."""
        found: dict[int, dict[int, list[int]]] = {number: {} for number in self.numbers.tolist()}
        whose = self.numbers[self.bundle]
        for number, axis, entry in zip(
            whose.tolist(), self.axis.tolist(), self.entry.tolist(), strict=True
        ):
            found[number].setdefault(axis, []).append(entry)
        # Tuples, because the garbage collector looks at every list again and again.
        return {
            number: tuple([(axis, tuple(entries)) for axis, entries in on.items()])
            for number, on in found.items()
        }


def find_bundles(
    axes: Sequence[Axis], moving: Tensor, whole: tuple[Bundles, Tensor] | None = None
) -> Bundles:
    """What can move.

    Args:
        axes: The axes of a model.
        moving: Class of atoms that move together.
        whole: What moves together with what is the same to all heads, and its classes, where
            ``moving`` is without that: what is read there is read.
    """
    none = torch.zeros(0, dtype=torch.int64)
    atoms = torch.cat([none, *(axis.atoms for axis in axes)])
    lengths = torch.tensor([len(axis.atoms) for axis in axes], dtype=torch.int64)
    axis = torch.arange(len(axes)).repeat_interleave(lengths)
    entry = torch.cat([none, *(torch.arange(length) for length in lengths.tolist())])
    classes, count = moving[atoms], int(moving.max()) + 1

    def met(*roles: str) -> Tensor:
        """Whether a class lies on an axis of some roles, ``[classes]``."""
        on = torch.tensor([one.role in roles for one in axes], dtype=torch.bool)
        return marked(classes[on[axis]], count)

    # What nothing reads is an output of the model; channels of attention are read in products.
    moves = met("columns", "head") & met("rows", "vector")
    if whole is not None:
        known = marked(whole[0].numbers, int(whole[1].max()) + 1)
        moves |= marked(classes[known[whole[1][atoms]]], count)
    moves[moving[FIXED]] = False
    there = moves[classes].nonzero()[:, 0]
    classes = classes[there]
    # Bundles in the order in which they are met.
    first = _first_places(classes, count)
    order = torch.argsort(first[classes], stable=True)
    _, bundle = torch.unique_consecutive(first[classes][order], return_inverse=True)
    numbers = torch.unique_consecutive(classes[order])
    there = there[order]
    return Bundles(numbers, bundle, axis[there], entry[there], len(axes))


def find_groups(bundles: Bundles) -> tuple[TiedGroup, ...]:
    """Bundles by the axes on which they lie and how often, in the order of the forward pass."""
    kinds = _kinds(bundles)
    # The entries of a kind on an axis, bundle by bundle.
    kind = kinds[bundles.bundle]
    pairs = kind * bundles.axes + bundles.axis
    lengths = torch.unique(pairs, return_counts=True)[1]
    sizes = torch.bincount(kinds).tolist()
    alike: dict[int, list[tuple[int, Tensor]]] = {}
    for part in torch.split(torch.argsort(pairs, stable=True), lengths.tolist()):
        at = int(kind[part[0]])
        if sizes[at] > 1:
            places = bundles.entry[part].view(sizes[at], -1)
            alike.setdefault(at, []).append((int(bundles.axis[part[0]]), places))
    return tuple(TiedGroup(sizes[at], tuple(places)) for at, places in alike.items())


def _kinds(bundles: Bundles) -> Tensor:
    """A number for every bundle, the same for those on the same axes with as many entries.

    Kinds are counted in the order in which they are met.
    """
    kinds = torch.zeros(len(bundles.numbers), dtype=torch.int64)
    where = bundles.bundle * bundles.axes + bundles.axis
    pairs, counts = torch.unique_consecutive(where, return_counts=True)
    bundle, on = pairs // bundles.axes, pairs % bundles.axes
    sizes = torch.unique(on, return_counts=True)[1]
    last = 0
    for part in torch.split(torch.argsort(on, stable=True), sizes.tolist()):
        whose = bundle[part]
        known = kinds[whose] * (int(counts.max()) + 1) + counts[part]
        found, at = torch.unique(known, return_inverse=True)
        kinds[whose] = last + 1 + at
        last += len(found)
    names, at = torch.unique(kinds, return_inverse=True)
    return torch.argsort(torch.argsort(_first_places(at, len(names))))[at]


def _first_places(numbers: Tensor, count: int) -> Tensor:
    """Where each of so many numbers stands first, ``[count]``; behind all where it does not."""
    places = torch.full((count,), len(numbers))
    return places.scatter_reduce(0, numbers, torch.arange(len(numbers)), "amin")
