"""Weights found by name, up to one prefix that all of them share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.signature.matching import find_by_name, match_names
from tests.support.layouts import plain_layout

NET = {
    "stem.weight": (16, 3, 3, 3),
    "bn.weight": (16,),
    "bn.bias": (16,),
    "a.weight": (16, 16, 3, 3),
    "b.weight": (16, 16, 3, 3),
    "head.weight": (10, 32),
}


def prefixed(prefix: str, net: dict[str, tuple[int, ...]] = NET) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in net.items()}


def test_same_names() -> None:
    assert find_by_name(NET, NET) == {name: name for name in NET}


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "a.b.c."])
@pytest.mark.parametrize("turned", [False, True])
def test_common_prefix(prefix: str, turned: bool) -> None:
    wanted, there = (prefixed(prefix), NET) if turned else (NET, prefixed(prefix))
    assert list(find_by_name(wanted, there).values()) == list(there)


def test_both_have_a_prefix_of_their_own() -> None:
    """Only one is removed or added, so that no name is made up on both sides."""
    assert find_by_name(prefixed("module."), prefixed("backbone.")) == {}


def test_the_prefix_with_which_most_are_found_is_taken() -> None:
    there = {**prefixed("teacher.", dict(list(NET.items())[:3])), **prefixed("student.")}
    assert find_by_name(NET, there) == {name: "student." + name for name in NET}
    # Of equal ones the plainest, then the first.
    there = {**prefixed("student."), **prefixed("teacher."), **prefixed("a.b.")}
    assert find_by_name(NET, there)["stem.weight"] == "a.b.stem.weight"
    assert find_by_name(NET, {**there, **NET}) == {name: name for name in NET}


def test_one_prefix_for_all() -> None:
    there = {
        **prefixed("x.", dict(list(NET.items())[:2])),
        **prefixed("y.", dict(list(NET.items())[2:])),
    }
    found = find_by_name(NET, there)
    assert set(found) == set(list(NET)[2:]) and set(found.values()) <= set(there)


def test_another_shape_is_not_found() -> None:
    there = {**NET, "a.weight": (16, 16, 3), "b.weight": (3, 3, 16, 16)}
    assert set(find_by_name(NET, there)) == set(NET) - {"a.weight", "b.weight"}


def test_names_are_cut_at_dots_only() -> None:
    assert find_by_name({"eight": (2,)}, {"w.eight": (2,)}) == {"eight": "w.eight"}
    assert find_by_name({"eight": (2,)}, {"weight": (2,)}) == {}


def test_nothing_is_found_in_nothing() -> None:
    assert find_by_name({}, NET) == find_by_name(NET, {}) == {}


def test_only_the_weights_of_the_layout_are_looked_for() -> None:
    layout = plain_layout({"a.weight": (4, 3), "b.weight": (5, 3)})
    tensors = {
        "m.a.weight": torch.zeros(4, 3),
        "m.b.weight": torch.zeros(5, 3, dtype=torch.complex64),
        "a.bias": torch.zeros(4),
    }
    assert match_names(layout, tensors) == {"a.weight": "m.a.weight"}


tables = st.dictionaries(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join),
    st.sampled_from([(4,), (4, 4), (8, 4)]),
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(wanted=tables, there=tables)
def test_what_is_found_is_one_to_one_of_equal_shapes_and_under_one_prefix(wanted, there) -> None:
    found = find_by_name(wanted, there)
    assert found == find_by_name(dict(wanted), dict(reversed(there.items())))
    assert len(set(found.values())) == len(found)
    assert all(wanted[name] == there[other] for name, other in found.items())
    added = {other[: max(0, len(other) - len(name))] for name, other in found.items()}
    removed = {name[: max(0, len(name) - len(other))] for name, other in found.items()}
    assert len(added) <= 1 and len(removed) <= 1
    # No other prefix finds more.
    same = sum(there.get(name) == shape for name, shape in wanted.items())
    assert len(found) >= same
    for prefix in ("a.", "b.c.", "c.a.b."):
        longer = sum(there.get(prefix + name) == shape for name, shape in wanted.items())
        shorter = sum(
            name.startswith(prefix) and there.get(name[len(prefix) :]) == shape
            for name, shape in wanted.items()
        )
        assert len(found) >= max(longer, shorter)
