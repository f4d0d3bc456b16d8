"""Bundles of channels by the axes on which they lie, and what can change places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.alignment.channels import FIXED, Axis

__all__ = ["Bundles", "Exchange", "TiedGroup", "find_bundles", "find_groups"]

Bundles = Mapping[int, Sequence[tuple[int, Sequence[int]]]]
"""Every bundle that can move, by its number: the axes on which it lies, with its entries there."""


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
    # Tuples, because the garbage collector looks at every list again and again.
    found: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for number, axis in enumerate(axes):
        classes = moving[axis.atoms].tolist()
        if len(set(classes)) == len(classes):
            for entry, bundle in enumerate(classes):
                found[bundle].append((number, (entry,)))
            continue
        entries: dict[int, list[int]] = defaultdict(list)
        for entry, bundle in enumerate(classes):
            entries[bundle].append(entry)
        for bundle, places in entries.items():
            found[bundle].append((number, tuple(places)))
    found.pop(int(moving[FIXED]), None)
    # What nothing reads is an output of the model; channels of attention are read in products.
    reads = {number for number, axis in enumerate(axes) if axis.role in ("columns", "head")}
    writes = {number for number, axis in enumerate(axes) if axis.role in ("rows", "vector")}

    def moves(lying: Sequence[tuple[int, Sequence[int]]]) -> bool:
        numbers = [number for number, _ in lying]
        return not reads.isdisjoint(numbers) and not writes.isdisjoint(numbers)

    def read_elsewhere(lying: Sequence[tuple[int, Sequence[int]]]) -> bool:
        number, entries = lying[0]
        return whole is not None and int(whole[1][axes[number].atoms[entries[0]]]) in whole[0]

    return {
        bundle: lying for bundle, lying in found.items() if moves(lying) or read_elsewhere(lying)
    }


def find_groups(bundles: Bundles) -> tuple[TiedGroup, ...]:
    """Bundles by the axes on which they lie and how often, in the order of the forward pass."""
    alike: dict[tuple[tuple[int, int], ...], list[list[Sequence[int]]]] = defaultdict(list)
    for lying in bundles.values():
        kind = tuple([(number, len(where)) for number, where in lying])
        alike[kind].append([where for _, where in lying])
    groups = []
    for kind, members in alike.items():
        if len(members) > 1:
            lists = [torch.tensor([member[at] for member in members]) for at in range(len(kind))]
            numbers = [number for number, _ in kind]
            groups.append(TiedGroup(len(members), tuple(zip(numbers, lists, strict=True))))
    return tuple(sorted(groups, key=lambda group: group.places[0][0]))
