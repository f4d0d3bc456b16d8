"""Groups of grouped convolutions and of norms over groups, and heads, that change places as wholes.

A *cell* is such a group or head, or several of different layers that hold the same channels: a
GroupNorm behind a grouped convolution, all GroupNorms along a residual stream. Where the groups of
one layer each lie within one of another, the larger takes the smaller ones along. Two cells can be
exchanged if their channels lie in the same way on everything else, and at the same places within
them, and meet the same where all heads meet it: then moving everything that writes and reads the
one to the place of the other changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from passportize.alignment.axes import Axis
from passportize.alignment.groups import Bundles, Exchange, Lying

__all__ = ["find_exchanges"]

Node: TypeAlias = tuple[str, int]
"""One group of one layer, or head of one attention: name of these, and number of the group."""

Family: TypeAlias = tuple[str, ...]
"""Layers whose groups hold the same channels."""

Cell: TypeAlias = frozenset[Node]

_Own: TypeAlias = tuple[int, int, str, int, tuple[int, ...]]
_On: TypeAlias = tuple[int, int]
_Key: TypeAlias = tuple[tuple[_Own, ...], tuple[_On, ...], tuple[int, ...]]


def find_exchanges(
    axes: Sequence[Axis], bundles: Bundles, moving: Tensor
) -> tuple[tuple[Axis, ...], tuple[Exchange, ...]]:
    """The exchanges of a model.

    Args:
        axes: Its axes, in the order of the forward pass.
        bundles: What can move, heads without what is the same to all of them.
        moving: Class of atoms that move together with that.

    Returns:
        Axes to be added behind the others, along which whole groups of a layer lie one after the
        other; and the exchanges, in the order in which they have to be undone.
    """
    if all(axis.cell is None for axis in axes):
        return (), ()
    search = _Search(axes, bundles.lying(), moving)
    found = [exchange for family in search.families for exchange in search.of(family)]
    # What takes others along comes first, because it moves them in the places that they have.
    found.sort(key=lambda exchange: -exchange.atoms.shape[1])
    return tuple(search.whole.values()), tuple(found)


class _Search:
    """Finds exchanges.

    Attributes:
        families: The cells of every family.
        whole: The axes that were made, by tensor.
    """

    def __init__(self, axes: Sequence[Axis], bundles: Mapping[int, Lying], moving: Tensor) -> None:
        self._axes, self._bundles = axes, bundles
        classes = {
            bundle: int(moving[axes[lying[0][0]].atoms[lying[0][1][0]]])
            for bundle, lying in bundles.items()
        }
        times = Counter(classes.values())
        self._shared = {bundle: at for bundle, at in classes.items() if times[at] > 1}
        self.whole: dict[str, Axis] = {}
        self._axes_of: dict[Node, list[int]] = defaultdict(list)
        self._node_of: dict[int, Node] = {}
        for number, axis in enumerate(axes):
            if axis.cell is not None:
                node = axis.attention or axis.tensor.rpartition(".")[0], axis.cell
                self._node_of[number] = node
                self._axes_of[node].append(number)
        self._touching: dict[Node, list[int]] = defaultdict(list)
        self._nodes: dict[int, frozenset[Node]] = {}
        for bundle, lying in bundles.items():
            nodes = frozenset(self._node_of[at] for at, _ in lying if at in self._node_of)
            self._nodes[bundle] = nodes
            for node in nodes:
                self._touching[node].append(bundle)
        self.families = self._joined()
        self._family_of = {
            node: (family, cell)
            for family, cells in self.families.items()
            for cell in cells
            for node in cell
        }
        self._within = self._nested()

    def _joined(self) -> dict[Family, list[Cell]]:
        """Cells of one or several layers, by these layers; without those that cannot move."""
        layers: dict[str, set[Node]] = defaultdict(set)
        for node in self._axes_of:
            layers[node[0]].add(node)
        partners: dict[tuple[str, str], set[tuple[Node, Node]]] = defaultdict(set)
        for nodes in dict.fromkeys(self._nodes.values()):
            for one in nodes:
                for other in nodes:
                    if one[0] < other[0]:
                        partners[one[0], other[0]].add((one, other))
        cells = {node: frozenset([node]) for node in self._axes_of}
        for (left, right), pairs in partners.items():
            ones, others = {one for one, _ in pairs}, {other for _, other in pairs}
            if len(pairs) == len(ones) == len(others) and ones | others == (
                layers[left] | layers[right]
            ):
                for one, other in pairs:
                    joined = cells[one] | cells[other]
                    cells.update(dict.fromkeys(joined, joined))
        families: dict[Family, list[Cell]] = defaultdict(list)
        for cell in dict.fromkeys(cells.values()):
            family = tuple(sorted(name for name, _ in cell))
            if len(set(family)) == len(family) and all(map(self._moves, cell)):
                families[family].append(cell)
        return families

    def _moves(self, node: Node) -> bool:
        """Whether all channels of a group can move."""
        there: dict[int, int] = defaultdict(int)
        for bundle in self._touching[node]:
            for number, entries in self._bundles[bundle]:
                there[number] += len(entries)
        return all(there[at] == len(self._axes[at].atoms) for at in self._axes_of[node])

    def _nested(self) -> dict[Cell, list[Cell]]:
        """The cells of other families that lie within a cell, in an order that means the same."""
        meeting: dict[tuple[Family, Family], set[tuple[Cell, Cell]]] = defaultdict(set)
        for nodes in dict.fromkeys(self._nodes.values()):
            known = {self._family_of[node] for node in nodes if node in self._family_of}
            for family, cell in known:
                for other, outer in known:
                    if family != other:
                        meeting[family, other].add((cell, outer))
        within: dict[Cell, list[Cell]] = defaultdict(list)
        for (family, _), pairs in sorted(meeting.items()):
            inside, outside = {cell for cell, _ in pairs}, {cell for _, cell in pairs}
            if len(pairs) == len(inside) == len(self.families[family]) > len(outside):
                for cell, around in sorted(pairs, key=lambda pair: sorted(pair[0])):
                    within[around].append(cell)
        return within

    def of(self, family: Family) -> Iterable[Exchange]:
        """The exchanges of the cells of one family."""
        alike: dict[object, list[tuple[list[int], list[Node]]]] = defaultdict(list)
        for cell in self.families[family]:
            nodes = [node for part in (cell, *self._within.get(cell, ())) for node in sorted(part)]
            ranks = {node: rank for rank, node in enumerate(nodes)}
            keys = {
                bundle: self._key(bundle, ranks)
                for bundle in {b for node in nodes for b in self._touching[node]}
            }
            bundles = sorted(keys, key=keys.__getitem__)
            alike[tuple(keys[bundle] for bundle in bundles)].append((bundles, nodes))
        for members in alike.values():
            if len(members) > 1:
                yield self._exchange(members)

    def _key(self, bundle: int, ranks: dict[Node, int]) -> _Key:
        """At which places in its cell a bundle lies, how often on other axes, and with what."""
        own: list[_Own] = []
        others: list[_On] = []
        for number, entries in self._bundles[bundle]:
            axis, node = self._axes[number], self._node_of.get(number)
            if node is not None and node in ranks:
                at = self._axes_of[node].index(number)
                own.append((ranks[node], at, axis.tensor, axis.dim, tuple(entries)))
            else:
                others.append((number, len(entries)))
        # Channels that meet the same in every head keep meeting it.
        shared = (self._shared[bundle],) if bundle in self._shared else ()
        return tuple(sorted(own)), tuple(others), shared

    def _exchange(self, members: Sequence[tuple[list[int], list[Node]]]) -> Exchange:
        places: dict[int, list[list[int]]] = defaultdict(lambda: [[] for _ in members])
        ranges: dict[str, list[list[int]]] = defaultdict(lambda: [[] for _ in members])
        atoms: list[list[Tensor]] = [[] for _ in members]
        for at, (bundles, nodes) in enumerate(members):
            for bundle in bundles:
                for number, entries in self._bundles[bundle]:
                    elsewhere = self._axes[number].role != "head"
                    if elsewhere and self._node_of.get(number) not in nodes:
                        places[number][at] += entries
            for node in nodes:
                for number in self._axes_of[node]:
                    axis = self._axes[number]
                    atoms[at].append(axis.atoms)
                    if axis.inputs is not None:
                        atoms[at].append(axis.inputs)
                    if axis.rows is None and axis.role != "head":
                        first = axis.first
                        ranges[axis.tensor][at] += range(first, first + len(axis.atoms))
        found = [(number, torch.tensor(entries)) for number, entries in sorted(places.items())]
        for number, entries_of in found:
            for at, entries in enumerate(entries_of):
                atoms[at].append(self._axes[number].atoms[entries])
        numbers = {name: len(self._axes) + list(self.whole).index(name) for name in self.whole}
        for name, lying in ranges.items():
            if name not in self.whole:
                numbers[name] = len(self._axes) + len(self.whole)
                self.whole[name] = self._whole(name)
            found.append((numbers[name], torch.tensor(lying)))
        return Exchange(
            len(members), tuple(found), torch.stack([torch.cat(part) for part in atoms])
        )

    def _whole(self, name: str) -> Axis:
        """All channels of a layer along the axis on which its groups lie one after the other."""
        parts = [
            axis
            for axis in self._axes
            if axis.tensor == name and axis.cell is not None and axis.role != "head"
        ]
        parts = sorted((axis for axis in parts if axis.rows is None), key=lambda axis: axis.first)
        return Axis(name, 0, "whole", torch.cat([axis.atoms for axis in parts]), parts[0].step)
