from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.errors import InvalidArgument
from passportize.signature.matching import BY_NAME, BY_ORDER, match_tensors
from passportize.signature.null_model import log2_arrangements, log2_binomial_tail, probability_text

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


def renamed(table, names=None):
    return [(f"x{i}.{name.rpartition('.')[2]}", shape) for i, (name, shape) in enumerate(table)]


def test_same_names():
    match = match_tensors(NET, NET)
    assert match.how == BY_NAME
    assert all(name == other for name, other in match.found.items())
    assert match.log2_alternatives(match.found) == 0.0


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "a.b.c."])
@pytest.mark.parametrize("turned", [False, True])
def test_common_prefix(prefix, turned):
    longer = [(prefix + name, shape) for name, shape in NET]
    claimed, suspect = (longer, NET) if turned else (NET, longer)
    match = match_tensors(claimed, suspect)
    assert match.how == BY_NAME
    assert list(match.found.values()) == [name for name, _ in suspect]


def test_prefix_is_that_of_the_decisive_tensors():
    suspect = [("teacher." + n, s) for n, s in NET] + [("student." + n, s) for n, s in NET[:5]]
    match = match_tensors(NET, suspect, decisive=["a.weight", "b.weight"])
    assert match.found["b.weight"] == "teacher.b.weight"


def test_other_names_are_matched_by_order_and_shape():
    match = match_tensors(NET, renamed(NET))
    assert match.how == BY_ORDER
    assert list(match.found.values()) == [name for name, _ in renamed(NET)]
    # Two tensors of one shape can change places: one bit, and one for the way of looking.
    assert match.log2_alternatives(["a.weight", "b.weight"]) == pytest.approx(2.0)


def test_names_that_belong_to_other_layers():
    swapped = dict(NET)
    suspect = [("b.weight", swapped["a.weight"]), ("a.weight", swapped["b.weight"])]
    claimed = [("a.weight", swapped["a.weight"]), ("b.weight", swapped["b.weight"])]
    assert match_tensors(claimed, suspect).found["a.weight"] == "a.weight"
    assert match_tensors(claimed, suspect, names=False).found["a.weight"] == "b.weight"


def test_a_missing_tensor_in_a_renamed_network():
    suspect = renamed([item for item in NET if item[0] != "a.weight"])
    match = match_tensors(NET, suspect)
    assert match.found["c.weight"] == "x5.weight"
    assert sum(other is None for other in match.found.values()) == 1


def test_a_new_head_is_no_reason_to_look_at_order():
    net = [(f"layer{i}.weight", (8, 8)) for i in range(20)] + [("head.weight", (10, 8))]
    suspect = [*net[:-1], ("head.weight", (5, 8))]
    match = match_tensors(net, suspect)
    assert match.how == BY_NAME
    assert match.found["head.weight"] is None


def test_reshaped_is_never_matched():
    suspect = [(name, shape[::-1] if len(shape) > 2 else shape) for name, shape in NET]
    match = match_tensors(NET, suspect)
    assert all(
        other is None or dict(suspect)[other] == dict(NET)[name]
        for name, other in match.found.items()
    )


tables = st.lists(
    st.tuples(
        st.sampled_from(["weight", "bias"]), st.sampled_from([(4,), (4, 4), (8, 4), (2, 2, 2)])
    ),
    max_size=12,
).map(lambda items: [(f"l{i}.{attribute}", shape) for i, (attribute, shape) in enumerate(items)])


@settings(deadline=None, max_examples=60)
@given(claimed=tables, suspect=tables, names=st.booleans())
def test_matching_is_injective_typed_and_deterministic(claimed, suspect, names):
    match = match_tensors(claimed, suspect, names=names)
    again = match_tensors(claimed, suspect, names=names)
    assert match == again
    assert set(match.found) == {name for name, _ in claimed}
    found = [other for other in match.found.values() if other is not None]
    assert len(found) == len(set(found))
    assert all(
        dict(claimed)[name] == dict(suspect)[other]
        for name, other in match.found.items()
        if other is not None
    )
    assert match.log2_alternatives(match.found) >= 0


# --- the null model ------------------------------------------------------------------------------


def exact_log2_tail(matched: int, total: int) -> float:
    ways = sum(math.comb(total, k) for k in range(matched, total + 1))
    size = ways.bit_length()
    return math.log2(float(Fraction(ways, 1 << size))) + size - total


@pytest.mark.parametrize("total", [1, 7, 64, 500, 2000])
def test_tail_against_integer_arithmetic(total):
    for matched in {0, 1, total // 3, total // 2, (2 * total) // 3, total - 1, total}:
        ours = log2_binomial_tail(matched, total)
        assert ours == pytest.approx(exact_log2_tail(matched, total), abs=1e-9, rel=1e-11)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_tail_on_random_counts(pair):
    assert log2_binomial_tail(*pair) == pytest.approx(exact_log2_tail(*pair), abs=1e-10)


def test_tail_does_not_underflow():
    assert log2_binomial_tail(100_000, 100_000) == -100_000.0
    assert -100_000 < log2_binomial_tail(90_000, 100_000) < -50_000


@pytest.mark.parametrize("pair", [(-1, 5), (6, 5)])
def test_impossible_counts(pair):
    with pytest.raises(InvalidArgument, match="cannot match"):
        log2_binomial_tail(*pair)


def test_probability_text_and_arrangements():
    assert probability_text(-4800.0) == "2^-4800"
    assert probability_text(-64.02) == "2^-64"
    assert probability_text(0.0) == "1.00"
    assert probability_text(-3.0) == "0.12"
    assert 2 ** log2_arrangements(5, 3) == pytest.approx(60)
