"""Tensors without names: found again where they are marked, and paid for by counting."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passportize.passport.passport import Passport
from passportize.signature.assignment import assign_tensors
from passportize.signature.layout import Layout
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.site import AnchorPart
from tests.support.layouts import bound, layout_of, plain_layout
from tests.support.marked import marked

PASSPORT = Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
SHAPES = {
    **{f"block{index}.weight": (24, 16, 3) for index in range(4)},
    **{f"proj{index}.weight": (16, 60) for index in range(3)},
    "head.weight": (10, 30),
}
LAYOUT = plain_layout(SHAPES)
KEY = ModelKey(PASSPORT, LAYOUT)


def disguised(
    tensors: dict[str, Tensor], seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Other names in another order, and the new name of each."""
    order = torch.randperm(len(tensors), generator=torch.Generator().manual_seed(seed)).tolist()
    names = list(tensors)
    new = {names[place]: f"t{number}" for number, place in enumerate(order)}
    return {new[names[place]]: tensors[names[place]] for place in order}, new


def matched(layout: Layout, tensors: dict[str, Tensor], found: dict[str, str]) -> tuple[int, int]:
    reading = read_signature(
        ModelKey(PASSPORT, layout), layout, prepare_sites(layout, tensors, found)
    )
    return reading.matched, reading.total


@pytest.mark.parametrize("seed", range(5))
def test_renamed_and_shuffled_tensors_are_found(seed: int) -> None:
    tensors, new = disguised(marked(KEY, LAYOUT), seed)
    assigned = assign_tensors(KEY, LAYOUT, tensors)
    assert assigned.found == new
    assert matched(LAYOUT, tensors, assigned.found) == (LAYOUT.bits, LAYOUT.bits)
    assert assigned.log2_alternatives == pytest.approx(math.log2(24 * 6))


def test_names_and_order_say_nothing() -> None:
    tensors = marked(KEY, LAYOUT)
    swapped = {**tensors, "block0.weight": tensors["block1.weight"]}
    swapped["block1.weight"] = tensors["block0.weight"]
    found = assign_tensors(KEY, LAYOUT, dict(reversed(swapped.items()))).found
    assert found["block0.weight"] == "block1.weight"
    assert found["block1.weight"] == "block0.weight"
    assert found["block2.weight"] == "block2.weight"


def test_marked_tensors_are_found_among_others() -> None:
    generator = torch.Generator().manual_seed(1)
    others = {f"other{i}": torch.randn(24, 16, 3, generator=generator) for i in range(6)}
    others |= {"scalar": torch.zeros(()), "complex": torch.zeros(24, 16, 3, dtype=torch.complex64)}
    tensors, new = disguised({**others, **marked(KEY, LAYOUT)})
    assigned = assign_tensors(KEY, LAYOUT, tensors)
    assert assigned.found == {name: new[name] for name in SHAPES}
    assert 2**assigned.log2_alternatives == pytest.approx(math.perm(10, 4) * 6)


def test_fewer_than_claimed_are_found() -> None:
    tensors = marked(KEY, LAYOUT)
    for name in ("block0.weight", "block2.weight", "head.weight"):
        del tensors[name]
    tensors, new = disguised(tensors)
    assigned = assign_tensors(KEY, LAYOUT, tensors)
    assert assigned.found == new
    assert 2**assigned.log2_alternatives == pytest.approx(math.perm(4, 2) * 6)


def test_a_suspect_without_any_of_the_shapes_costs_nothing() -> None:
    assigned = assign_tensors(KEY, LAYOUT, {"a": torch.zeros(3, 3), "b": torch.zeros(10, 30, 1)})
    assert assigned.found == {} and assigned.log2_alternatives == 0.0


@pytest.mark.parametrize("claimed", range(1, 5))
@pytest.mark.parametrize("there", range(1, 5))
def test_the_price_counts_the_ways_and_the_best_of_them_is_taken(claimed: int, there: int) -> None:
    """Against all injections of the fewer into the more, each of them read in full."""
    layout = plain_layout({f"w{index}": (12, 9) for index in range(claimed)})
    key = ModelKey(PASSPORT, layout)
    torch.manual_seed(claimed * 10 + there)
    tensors = {f"t{index}": torch.randn(12, 9) for index in range(there)}
    weights, names = list(layout.weights), list(tensors)
    if claimed <= there:
        ways = [
            dict(zip(weights, chosen, strict=True))
            for chosen in itertools.permutations(names, claimed)
        ]
    else:
        ways = [
            dict(zip(chosen, names, strict=True))
            for chosen in itertools.permutations(weights, there)
        ]
    assigned = assign_tensors(key, layout, tensors)
    assert assigned.log2_alternatives == pytest.approx(math.log2(len(ways)), abs=1e-12)
    assert assigned.found in ways
    best = max(matched(layout, tensors, way)[0] for way in ways)
    assert matched(layout, tensors, assigned.found)[0] == best


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from([(6, 4), (6, 5), (4, 6)]), max_size=4),
    st.lists(st.sampled_from([(6, 4), (6, 5), (4, 6)]), max_size=4),
)
def test_shapes_are_paid_one_by_one(claimed, there) -> None:
    layout = plain_layout({f"w{index}": shape for index, shape in enumerate(claimed)})
    tensors = {f"t{index}": torch.ones(shape) for index, shape in enumerate(there)}
    assigned = assign_tensors(ModelKey(PASSPORT, layout), layout, tensors)
    ways = 1
    for shape in set(claimed) & set(there):
        counts = claimed.count(shape), there.count(shape)
        ways *= math.perm(max(counts), min(counts))
    assert 2**assigned.log2_alternatives == pytest.approx(ways)
    assert len(set(assigned.found.values())) == len(assigned.found)
    assert all(tensors[o].shape == layout.weights[n] for n, o in assigned.found.items())


def test_a_weight_of_several_sites_goes_to_one_tensor() -> None:
    sites = [
        bound("bn1", AnchorPart("a", 20), AnchorPart("b", 8, axis="input")),
        bound("bn2", AnchorPart("a", 12, start=3), AnchorPart("b", 9)),
        bound("bn3", AnchorPart("c", 30)),
    ]
    layout = layout_of(sites, {"a": (30, 25), "b": (30, 25), "c": (30, 25)}, raw=["bn3"])
    key = ModelKey(PASSPORT, layout)
    torch.manual_seed(3)
    tensors = {f"t{index}": torch.randn(30, 25) for index in range(4)}
    ways = [dict(zip("abc", chosen, strict=True)) for chosen in itertools.permutations(tensors, 3)]
    assigned = assign_tensors(key, layout, tensors)
    assert 2**assigned.log2_alternatives == pytest.approx(24)
    best = max(matched(layout, tensors, way)[0] for way in ways)
    assert matched(layout, tensors, assigned.found) == (best, 79)


def test_strangers_stay_at_chance() -> None:
    """Over 200 keys no strength beyond luck, although the best of 24 x 6 ways is taken."""
    torch.manual_seed(0)
    tensors, _ = disguised({name: torch.randn(shape) for name, shape in SHAPES.items()})
    layout = plain_layout(SHAPES)
    strengths = []
    for number in range(200):
        key = ModelKey(
            Passport.generate("M", date="2026-11-28", secret=number.to_bytes(32, "big")), layout
        )
        assigned = assign_tensors(key, layout, tensors)
        reading = read_signature(key, layout, prepare_sites(layout, tensors, assigned.found))
        assert reading.total == layout.bits
        tail = log2_binomial_tail(reading.matched, reading.total)
        strengths.append(-tail - assigned.log2_alternatives)
    assert max(strengths) < math.log2(200) + 10
    for strength in (1, 3, 5):
        share = sum(each >= strength for each in strengths) / 200
        assert share <= 2.0**-strength + 3 * (2.0**-strength / 200) ** 0.5
