"""Which tensor of a suspect is which weight of a layout, where names say nothing.

Names and order are the suspect's to choose. So every weight of the layout is read from every tensor
of its shape, and the one-to-one assignment with the most matching bits is taken. For each single
assignment the bits are fair coins under the null hypothesis; a p-value over all assignments is at
most their number times as large (union bound), and that number is the price.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from passportize.signature.formulations import Formulation
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_arrangements
from passportize.signature.reading import readable, rows_of
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import Vectors

__all__ = ["Assignment", "assign_tensors"]

_Reader: TypeAlias = tuple[Formulation, AnchorPart, Vectors, Tensor]
"""How a part of a weight is read, with which vectors, and the bits that are expected."""


@dataclass(frozen=True)
class Assignment:
    """Result of :func:`assign_tensors`.

    Attributes:
        found: The suspect's name for the weights of the layout; without those that it lacks.
        log2_alternatives: ``log2`` of the number of assignments among which this one was chosen.
    """

    found: Mapping[str, str]
    log2_alternatives: float


def assign_tensors(
    key: ModelKey,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    known: MutableMapping[str, dict[str, int]] | None = None,
) -> Assignment:
    """Find the assignment of a suspect's tensors to the weights of a layout that matches most.

    Args:
        key: Made from a passport and ``layout``.
        layout: Where the bits lie.
        tensors: The suspect's tensors by name; the names are not looked at.
        known: Bits that match, by name of a tensor and of a weight, from an earlier look at the
            same tensors; what is read now is added.
    """
    # Here, because importing scipy takes longer than the rest of passportize together.
    from scipy.optimize import linear_sum_assignment

    claimed: dict[tuple[int, ...], list[str]] = {}
    for weight, shape in layout.weights.items():
        claimed.setdefault(shape, []).append(weight)
    readers = _readers(key, layout, {tuple(tensor.shape) for tensor in tensors.values()})
    found: dict[str, str] = {}
    known = {} if known is None else known
    price = 0.0
    for shape, weights in claimed.items():
        there = [name for name, tensor in tensors.items() if readable(tensor, shape)]
        if not there:
            continue
        for name in there:
            before = known.setdefault(name, {})
            if not before.keys() >= set(weights):
                before |= _matched({weight: readers[weight] for weight in weights}, tensors[name])
        scores = [[known[name][weight] for name in there] for weight in weights]
        rows, columns = linear_sum_assignment(scores, maximize=True)
        found.update(
            (weights[row], there[column]) for row, column in zip(rows, columns, strict=True)
        )
        more, fewer = max(len(weights), len(there)), min(len(weights), len(there))
        price += log2_arrangements(more, fewer)
    return Assignment(found, price)


def _readers(
    key: ModelKey, layout: Layout, there: AbstractSet[tuple[int, ...]]
) -> dict[str, list[_Reader]]:
    """What is read from each weight: with which vectors, and the bits that are expected.

    No vectors are drawn for sites with a weight whose shape is not ``there``.
    """
    expected = key.bits()
    readers: dict[str, list[_Reader]] = {}
    start = 0
    for index, site in enumerate(layout.sites):
        if there.isdisjoint(layout.shapes[index]):
            start += site.bits
            continue
        for part, vectors in zip(anchor_of(site).parts, key.sides(index), strict=True):
            stop = start + part.bits
            reader = (layout.formulation(index), part, vectors, expected[start:stop] > 0)
            readers.setdefault(part.weight, []).append(reader)
            start = stop
    return readers


def _matched(readers: Mapping[str, list[_Reader]], tensor: Tensor) -> dict[str, int]:
    """Bits that match if a tensor stands for each of some weights."""
    rows: dict[AnchorPart, Tensor] = {}

    def rows_for(part: AnchorPart) -> Tensor:
        # Most weights of a shape are read alike.
        kind = replace(part, weight="")
        if kind not in rows:
            rows[kind] = rows_of(tensor, part)
        return rows[kind]

    return {
        weight: sum(
            int(((formulation.respond([rows_for(part)], [vectors]).gamma >= 0) == bits).sum())
            for formulation, part, vectors, bits in its
        )
        for weight, its in readers.items()
    }
