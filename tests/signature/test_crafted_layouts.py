"""No claim can be written to suit a model: thousands of tries, at random and by climbing.

Whoever writes a claim chooses sites, names, rows, order and responses. Each choice draws a key of
its own, so the best of many tries is as strong as the best of as many passports.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import binomtest

import passportize as pp
from passportize.passport.images import PassportImages
from passportize.passport.passport import Passport
from passportize.signature.evidence import LOOKS_PRICE, read_evidence
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.site import AnchorPart
from tests.support.crafted_claims import (
    KINDS,
    SHAPES,
    Craft,
    Try,
    climbing_tries,
    craft,
    judged,
    random_tries,
    untouched_model,
)
from tests.support.layouts import bound, layout_of

LUCK = 1e-4
"""Chance that a test fails without a fault."""


def assert_fair(tries: Sequence[Try]) -> None:
    """Bits by name are coins, and no level of strength is reached more often than it says."""
    matched, total = sum(each.matched for each in tries), sum(each.total for each in tries)
    assert total > len(tries) and binomtest(matched, total).pvalue > LUCK
    tails = [-log2_binomial_tail(each.matched, each.total) for each in tries]
    strengths = [each.evidence.strength for each in tries]
    for level in (1, 2, 4, 6):
        # A discrete p-value is at most as often below a level as the level says.
        for found in (tails, strengths):
            reached = sum(each >= level for each in found)
            assert binomtest(reached, len(tries), 2.0**-level, "greater").pvalue > LUCK
    assert max(strengths) < math.log2(len(tries)) + 10


@pytest.mark.parametrize("kind", KINDS)
def test_no_claim_of_many_suits_a_model(kind: str) -> None:
    assert_fair(random_tries(kind, 200))


@pytest.mark.parametrize("kind", KINDS)
def test_no_climber_gets_further_than_luck(kind: str) -> None:
    """Every step keeps what fitted; the key forgets it."""
    assert_fair(climbing_tries(kind, 200))


def test_verify_says_the_same_of_a_crafted_claim() -> None:
    dice, tensors = random.Random(3), untouched_model("random")
    for _ in range(10):
        crafted = craft(dice)
        found = judged(tensors, crafted).evidence
        verdict = pp.verify(tensors, crafted.passport, crafted.claim)
        assert (verdict.matched, verdict.total) == (found.reading.matched, found.reading.total)
        assert (verdict.strength, verdict.matched_by) == (found.strength, found.matched_by)
        assert not verdict.accepted and verdict.message is None


def test_overlapping_and_repeated_anchors_are_coins_of_their_own() -> None:
    """Twenty sites on the same rows: nobody counts one lucky row twenty times."""
    tensors = {"a.weight": untouched_model("random")["a.weight"]}
    matched, dice = [], random.Random(1)
    for _ in range(60):
        sites = tuple(bound(f"norm{dice.random()}", AnchorPart("a.weight", 24)) for _ in range(20))
        raw = frozenset(site.name for site in sites[:5])
        found = judged(tensors, Craft("Mallory", sites, SHAPES, raw))
        assert found.total == 480
        matched.append(found.matched)
    assert binomtest(sum(matched), 480 * len(matched)).pvalue > LUCK
    spread = sum((hit - 240) ** 2 for hit in matched) / len(matched) / 120
    assert abs(spread - 1) < 4 * math.sqrt(2 / len(matched))


def test_pictures_that_the_claimant_chooses_are_no_way_either() -> None:
    """Sums of the rows themselves as pictures: they answer strongly, but coins are drawn anew."""
    tensors = untouched_model("random")
    sites = [bound(f"norm of {name}", AnchorPart(name, SHAPES[name][0])) for name in SHAPES]
    layout = layout_of(sites, SHAPES, [site.name for site in sites])
    best, matched, tries = 0.0, 0, 100
    picture, generator = torch.ones(1, 2, 2), torch.Generator().manual_seed(0)
    message = Passport.generate("Mallory", date="2026-01-31").owner_message
    for _ in range(tries):
        patches = {}
        for name, weight in tensors.items():
            rows = weight.flatten(1)
            mixed = torch.randn(2, len(rows), generator=generator) @ rows
            patches[name] = mixed.T.reshape(1, -1, 2)
        key = ModelKey(
            Passport(bytes(32), message, PassportImages(picture, picture, patches)), layout
        )
        best = max(best, read_evidence(tensors, key, layout).strength)
        prepared = prepare_sites(layout, tensors, {name: name for name in SHAPES})
        matched += read_signature(key, layout, prepared).matched
    assert best < math.log2(tries) + 10
    assert binomtest(matched, layout.bits * tries).pvalue > LUCK


@pytest.mark.parametrize(("claimed", "there"), [(60, 1), (3, 12), (12, 3)])
def test_more_and_fewer_weights_than_there_are_are_paid_for(claimed: int, there: int) -> None:
    """Of many tensors of one shape any may be the one that is claimed, and the other way round."""
    generator = torch.Generator().manual_seed(there)
    shape = (6, 24)
    tensors = {f"t{n}": torch.randn(shape, generator=generator) for n in range(there)}
    dice, strengths = random.Random(claimed), []
    ways = math.perm(max(claimed, there), min(claimed, there))
    for _ in range(60):
        names = [f"w{dice.random()}" for _ in range(claimed)]
        sites = tuple(bound(f"norm of {name}", AnchorPart(name, 6)) for name in names)
        found = judged(tensors, Craft("Mallory", sites, dict.fromkeys(names, shape)))
        assert found.total == 0
        if found.evidence.reading.total:
            assert found.evidence.log2_alternatives == pytest.approx(LOOKS_PRICE + math.log2(ways))
            assert found.evidence.reading.total == 6 * min(claimed, there)
        strengths.append(found.evidence.strength)
    assert max(strengths) < math.log2(len(strengths)) + 10
    for level in (1, 2, 4):
        reached = sum(each >= level for each in strengths)
        assert binomtest(reached, len(strengths), 2.0**-level, "greater").pvalue > LUCK
