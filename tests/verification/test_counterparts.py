"""Which tensor of one model stands for which of another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from passportize.verification.counterparts import find_counterparts, structure_of

NET = [
    ("stem.weight", (16, 3, 3, 3)),
    ("bn.weight", (16,)),
    ("bn.bias", (16,)),
    ("bn.running_mean", (16,)),
    ("a.weight", (16, 16, 3, 3)),
    ("b.weight", (16, 16, 3, 3)),
    ("c.weight", (32, 16, 3, 3)),
    ("head.weight", (10, 32)),
    ("head.bias", (10,)),
]


def renamed(table):
    return [(f"x{i}.{name.rpartition('.')[2]}", shape) for i, (name, shape) in enumerate(table)]


def test_same_names():
    assert find_counterparts(NET, NET) == {name: name for name, _ in NET}


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "a.b.c."])
@pytest.mark.parametrize("turned", [False, True])
def test_common_prefix(prefix, turned):
    longer = [(prefix + name, shape) for name, shape in NET]
    wanted, there = (longer, NET) if turned else (NET, longer)
    assert list(find_counterparts(wanted, there).values()) == [name for name, _ in there]


def test_the_prefix_with_which_most_are_found_is_taken():
    there = [("teacher." + n, s) for n, s in NET] + [("student." + n, s) for n, s in NET[:5]]
    found = find_counterparts(NET, there)
    assert found == {name: "teacher." + name for name, _ in NET}


def test_other_names_are_matched_by_order_and_shape():
    assert list(find_counterparts(NET, renamed(NET)).values()) == [n for n, _ in renamed(NET)]


def test_names_of_attributes_are_told_apart_before_they_are_mixed():
    there = [("x.bias", (16,)), ("x.weight", (16,)), ("y.odd", (16,))]
    wanted = [("bn.weight", (16,)), ("bn.bias", (16,)), ("bn.running_mean", (16,))]
    assert find_counterparts(wanted, there) == {
        "bn.weight": "x.weight",
        "bn.bias": "x.bias",
        "bn.running_mean": "y.odd",
    }


def test_a_missing_tensor_in_a_renamed_network():
    found = find_counterparts(NET, renamed([item for item in NET if item[0] != "a.weight"]))
    assert found["c.weight"] == "x5.weight"
    assert sum(other is None for other in found.values()) == 1


def test_a_new_head_is_no_reason_to_look_at_order():
    net = [(f"layer{i}.weight", (8, 8)) for i in range(20)] + [("head.weight", (10, 8))]
    there = [*net[:-1], ("head.weight", (5, 8)), ("other.weight", (10, 8))]
    found = find_counterparts(net, there)
    assert found["head.weight"] is None
    assert all(found[name] == name for name, _ in net[:-1])


def test_reshaped_is_never_matched():
    there = [(name, shape[::-1] if len(shape) > 2 else shape) for name, shape in NET]
    found = find_counterparts(NET, there)
    assert all(
        other is None or dict(there)[other] == dict(NET)[name] for name, other in found.items()
    )
    assert found["head.weight"] == "head.weight" and found["stem.weight"] is None


def test_structures_are_names_and_shapes_of_tensors_in_order():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert structure_of(model.state_dict()) == tuple(
        (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    )
    assert structure_of({"b": torch.zeros(2), "step": 3, "a": torch.zeros(())}) == (
        ("b", (2,)),
        ("a", ()),
    )


tables = st.lists(
    st.tuples(
        st.sampled_from(["weight", "bias"]), st.sampled_from([(4,), (4, 4), (8, 4), (2, 2, 2)])
    ),
    max_size=12,
).map(lambda items: [(f"l{i}.{attribute}", shape) for i, (attribute, shape) in enumerate(items)])


@settings(deadline=None, max_examples=60)
@given(wanted=tables, there=tables)
def test_counterparts_are_one_to_one_of_equal_shapes_and_always_the_same(wanted, there):
    found = find_counterparts(wanted, there)
    assert found == find_counterparts(wanted, there)
    assert list(found) == [name for name, _ in wanted]
    pairs = [(name, other) for name, other in found.items() if other is not None]
    assert len({other for _, other in pairs}) == len(pairs)
    assert all(dict(wanted)[name] == dict(there)[other] for name, other in pairs)
