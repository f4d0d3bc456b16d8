"""Bundles and groups against a plain loop over sets of places."""

from __future__ import annotations

from collections import defaultdict

import torch
from hypothesis import given
from hypothesis import strategies as st

from passportize.alignment.axes import FIXED, Axis
from passportize.alignment.groups import find_bundles, find_groups

ROLES = ("rows", "vector", "columns", "head", "scale")

axes_of_models = st.lists(
    st.tuples(st.sampled_from(ROLES), st.lists(st.integers(0, 9), min_size=1, max_size=6)),
    max_size=6,
).map(
    lambda drawn: [
        Axis(str(number), 0, role, torch.tensor(atoms), number)
        for number, (role, atoms) in enumerate(drawn)
    ]
)
classes = st.lists(st.integers(0, 4), min_size=10, max_size=10).map(torch.tensor)


def lying_of(axes: list[Axis], moving: torch.Tensor) -> dict[int, dict[int, tuple[int, ...]]]:
    """Where every class lies that is written and read, in the order in which they are met."""
    found: dict[int, dict[int, tuple[int, ...]]] = {}
    for number, axis in enumerate(axes):
        for entry, at in enumerate(moving[axis.atoms].tolist()):
            on = found.setdefault(at, {})
            on[number] = (*on.get(number, ()), entry)

    def met(on: dict[int, tuple[int, ...]], *roles: str) -> bool:
        return any(axes[number].role in roles for number in on)

    return {
        at: on
        for at, on in found.items()
        if met(on, "columns", "head") and met(on, "rows", "vector") and at != int(moving[FIXED])
    }


@given(axes=axes_of_models, moving=classes)
def test_bundles_and_groups_against_a_loop(axes: list[Axis], moving: torch.Tensor) -> None:
    bundles = find_bundles(axes, moving)
    expected = lying_of(axes, moving)
    assert bundles.lying() == {at: tuple(on.items()) for at, on in expected.items()}
    assert list(bundles.lying()) == list(expected)
    alike = defaultdict(list)
    for on in expected.values():
        alike[tuple((number, len(entries)) for number, entries in on.items())].append(on)
    groups = [
        (len(members), [(number, [on[number] for on in members]) for number, _ in kind])
        for kind, members in alike.items()
        if len(members) > 1
    ]
    groups.sort(key=lambda group: group[1][0][0])
    assert [
        (
            group.size,
            [(number, list(map(tuple, places.tolist()))) for number, places in group.places],
        )
        for group in find_groups(bundles)
    ] == groups


@given(axes=axes_of_models, moving=classes)
def test_what_is_read_with_all_heads_moves_by_itself_as_well(
    axes: list[Axis], moving: torch.Tensor
) -> None:
    whole = find_bundles(axes, moving)
    single = torch.arange(10)
    found = find_bundles(axes, single, (whole, moving)).lying()
    wanted = set(lying_of(axes, single)) | {
        atom
        for axis in axes
        for atom in axis.atoms.tolist()
        if int(moving[atom]) in whole.numbers.tolist()
    }
    assert set(found) == wanted - {FIXED}
