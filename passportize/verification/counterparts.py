"""Which tensor of one model stands for which of another, to fill it or to lay it beside the other.

No bits are read by it: there :mod:`passportize.signature.matching` and
:mod:`passportize.signature.assignment` decide.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import Tensor

from passportize.signature.matching import find_by_name

__all__ = ["find_counterparts", "find_of_any_width", "find_partners", "structure_of"]

SUBSTANTIAL = 0.1
"""Share of tensors that may be missing by name before order and shape are looked at."""

Shape = tuple[int, ...]
Structure = Sequence[tuple[str, Shape]]
"""Names and shapes of tensors, in their order."""


def find_counterparts(wanted: Structure, there: Structure) -> dict[str, str | None]:
    """Find tensors by name or, where names say too little, by order among equal shapes.

    Exact names come first, up to a prefix that all of them share (``"module."``, say). If more
    than a tenth of the tensors is not found so, the rest is matched by order: the k-th tensor of
    a shape with the k-th of this shape where there are equally many, else along the longest
    common runs of shapes. Names of attributes (``weight``, ``running_mean``) are told apart
    first, and only then mixed.

    Args:
        wanted: Names and shapes of what is looked for, in the order of its state dict.
        there: Names and shapes among which to look, likewise.

    Returns:
        Names in ``there`` by names in ``wanted``, None where there is none; the same for the same
        arguments.
    """
    found: dict[str, str | None] = {name: None for name, _ in wanted}
    found.update(find_by_name(dict(wanted), dict(there)))
    if sum(other is None for other in found.values()) <= SUBSTANTIAL * len(found):
        return found
    for key in (_attribute_and_shape, _shape_alone):
        taken = {other for other in found.values() if other is not None}
        left = [item for item in wanted if found[item[0]] is None]
        right = [item for item in there if item[0] not in taken]
        found.update(_by_order(left, right, key))
    return found


def find_partners(wanted: Structure, there: Structure) -> dict[str, str]:
    """Names in ``there`` by names in ``wanted``, by shape or, where that leaves some, of any width.

    Args:
        wanted: As for :func:`find_counterparts`.
        there: Likewise.
    """
    found = find_counterparts(wanted, there)
    names = {name: partner for name, partner in found.items() if partner}
    return names if len(names) == len(found) else find_of_any_width(wanted, there)


def find_of_any_width(wanted: Structure, there: Structure) -> dict[str, str]:
    """The same for models that may differ in how many channels they have.

    By name, or by order where both have the same tensors in one order but for their names.

    Args:
        wanted: As for :func:`find_counterparts`.
        there: Likewise.

    Returns:
        Names in ``there`` by names in ``wanted``; not all of them, where that cannot be told.
    """
    kinds = [
        tuple((name, (len(shape),)) for name, shape in structure) for structure in (wanted, there)
    ]
    found = find_by_name(dict(kinds[0]), dict(kinds[1]))
    if len(found) == len(wanted):
        # A part of another model may have such names, too.
        return found if len(there) <= (1 + SUBSTANTIAL) * len(wanted) else {}
    same = [[_attribute_and_shape(item) for item in structure] for structure in kinds]
    if same[0] != same[1]:
        return found
    return {name: other for (name, _), (other, _) in zip(*kinds, strict=True)}


def _attribute_and_shape(item: tuple[str, Shape]) -> Hashable:
    return item[0].rpartition(".")[2], item[1]


def _shape_alone(item: tuple[str, Shape]) -> Hashable:
    return item[1]


def _by_order(
    wanted: Sequence[tuple[str, Shape]],
    there: Sequence[tuple[str, Shape]],
    key: Callable[[tuple[str, Shape]], Hashable],
) -> dict[str, str]:
    """Pairs by order among tensors with equal keys."""
    left: dict[Hashable, list[str]] = defaultdict(list)
    right: dict[Hashable, list[str]] = defaultdict(list)
    for groups, items in ((left, wanted), (right, there)):
        for item in items:
            groups[key(item)].append(item[0])
    pairs: dict[str, str] = {}
    uneven = set()
    for group, members in left.items():
        others = right.get(group, [])
        if len(members) == len(others):
            pairs.update(zip(members, others, strict=True))
        elif others:
            uneven.add(group)
    if uneven:
        keys = [key(item) for item in wanted], [key(item) for item in there]
        matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
        for block in matcher.get_matching_blocks():
            for step in range(block.size):
                if keys[0][block.a + step] in uneven:
                    pairs[wanted[block.a + step][0]] = there[block.b + step][0]
    return pairs


def structure_of(state_dict: Mapping[str, object]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the tensors of a state dict, in its order."""
    return tuple(
        (name, tuple(int(size) for size in value.shape))
        for name, value in state_dict.items()
        if isinstance(value, Tensor)
    )
