"""Two looks at a suspect, what they weigh, and what follows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passportize.passport.passport import Passport
from passportize.signature.assignment import assign_tensors
from passportize.signature.evidence import LOOKS_PRICE, judge_evidence, read_evidence
from passportize.signature.layout import Layout
from passportize.signature.matching import BY_ASSIGNMENT, BY_NAME
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.thresholds import ACCEPT_STRENGTH
from tests.support.layouts import plain_layout
from tests.support.marked import marked

PASSPORT = Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
SHAPES = {f"layers.{index}.weight": (40, 30) for index in range(4)} | {"head.weight": (20, 40)}
LAYOUT = plain_layout(SHAPES)
KEY = ModelKey(PASSPORT, LAYOUT)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return marked(KEY, LAYOUT)


def test_a_marked_model_is_read_by_name_for_two_bits(tensors) -> None:
    found = read_evidence(tensors, KEY, LAYOUT)
    assert LOOKS_PRICE == 2.0
    assert (found.matched_by, found.log2_alternatives) == (BY_NAME, 2.0)
    assert (found.log2_p, found.strength) == (-180.0, 178.0)
    assert found.found == {name: name for name in SHAPES}
    assert judge_evidence(found, LAYOUT) == (
        True,
        "the weights carry the signature (180 of 180 bits)",
    )


def test_a_prefix_costs_nothing_more(tensors) -> None:
    found = read_evidence({"module." + name: t for name, t in tensors.items()}, KEY, LAYOUT)
    assert (found.matched_by, found.strength) == (BY_NAME, 178.0)
    assert found.found["head.weight"] == "module.head.weight"


def test_renamed_tensors_are_found_by_assignment_at_its_price(tensors) -> None:
    renamed = {f"t{index}": t for index, t in enumerate(reversed(tensors.values()))}
    found = read_evidence(renamed, KEY, LAYOUT)
    assert found.matched_by == BY_ASSIGNMENT
    assert found.log2_alternatives == pytest.approx(2 + math.log2(24))
    assert found.strength == pytest.approx(180 - 2 - math.log2(24))
    assert judge_evidence(found, LAYOUT)[0] is True


def test_names_that_belong_to_other_layers_mislead_nobody(tensors) -> None:
    """A Sequential counted anew: all names are there, and those of other layers."""
    values = list(tensors.values())
    shifted = dict(zip(SHAPES, [*values[1:4], values[0], values[4]], strict=True))
    found = read_evidence(shifted, KEY, LAYOUT)
    assert found.matched_by == BY_ASSIGNMENT and found.reading.matched == 180
    assert found.found["layers.0.weight"] == "layers.3.weight"


def test_the_stronger_look_counts() -> None:
    """Names that fit most, too little for acceptance, are kept where no assignment is stronger."""
    layout = plain_layout({f"l{index}.weight": (10, 30) for index in range(5)})
    key = ModelKey(PASSPORT, layout)
    found = read_evidence(marked(key, layout), key, layout)
    # 50 bits never reach the threshold, so both looks are taken.
    assert (found.matched_by, found.strength) == (BY_NAME, 48.0)
    assigned = assign_tensors(key, layout, marked(key, layout))
    assert assigned.log2_alternatives == pytest.approx(math.log2(120))
    accepted, reason = judge_evidence(found, layout)
    assert accepted is None and "too few to reach 64 bits" in reason


def test_strength_is_the_tail_less_the_price_and_never_below_zero() -> None:
    torch.manual_seed(0)
    stranger = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    found = read_evidence(stranger, KEY, LAYOUT)
    assert found.log2_p == log2_binomial_tail(found.reading.matched, 180)
    assert found.strength == max(0.0, -found.log2_p - found.log2_alternatives)
    assert replace(found, log2_p=-0.5).strength == 0.0
    accepted, reason = judge_evidence(found, LAYOUT)
    assert accepted is False and reason.startswith("the weights do not carry the signature (")


def test_what_cannot_be_judged_says_why(tensors) -> None:
    nothing = Layout.of([], [], {})
    found = read_evidence(tensors, ModelKey(PASSPORT, nothing), nothing)
    assert judge_evidence(found, nothing) == (
        None,
        "no norm of the suspect can carry a signature",
    )
    found = read_evidence({"w": torch.zeros(3)}, KEY, LAYOUT)
    assert found.strength == 0.0
    accepted, reason = judge_evidence(found, LAYOUT)
    assert accepted is None and reason.startswith("no site of the claim is in the suspect")
    part = {name: tensors[name] for name in ("layers.0.weight", "head.weight")}
    found = read_evidence(part, KEY, LAYOUT)
    assert found.reading.total == 60
    accepted, reason = judge_evidence(found, LAYOUT)
    assert accepted is None and reason.startswith("60 of 180 bits are there to be read, too few")


def test_the_threshold_is_that_of_acceptance() -> None:
    """66 bits of which all match are the fewest that are accepted by name."""
    for bits, expected in ((65, None), (66, True)):
        layout = plain_layout({"w": (bits, 60)})
        key = ModelKey(PASSPORT, layout)
        found = read_evidence(marked(key, layout), key, layout)
        assert found.strength == bits - 2
        assert judge_evidence(found, layout)[0] is expected
    assert ACCEPT_STRENGTH == 64.0


def test_two_looks_exceed_no_level_more_often_than_it_says() -> None:
    """Over 300 strangers' keys the share of strengths is at most 2^-strength, both looks taken."""
    torch.manual_seed(1)
    suspect = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    strengths = [
        read_evidence(suspect, ModelKey(passport, LAYOUT), LAYOUT).strength
        for passport in (
            Passport.generate("M", date="2026-01-31", secret=number.to_bytes(32, "big"))
            for number in range(300)
        )
    ]
    assert max(strengths) < math.log2(300) + 10
    for level in (1, 2, 4):
        share = sum(strength >= level for strength in strengths) / 300
        assert share <= 2.0**-level + 3 * (2.0**-level / 300) ** 0.5
