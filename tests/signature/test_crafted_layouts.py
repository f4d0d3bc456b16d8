"""The claimant as attacker: layouts written to suit models that nobody marked.

Whoever writes a claim chooses sites, names, rows, order and responses. Each choice draws a key of
its own, so the best of many tries is as strong as the best of as many passports.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from passportize.passport.images import PassportImages
from passportize.passport.passport import Passport
from passportize.signature.evidence import Evidence, read_evidence
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.rows import anchor_width
from passportize.signature.site import AnchorPart, Site
from tests.support.layouts import bound, layout_of

MALLORY = Passport.generate("Mallory", date="2026-01-31", secret=bytes(32))
SHAPES = {
    "a.weight": (24, 3, 3, 3),
    "b.weight": (24, 3, 3, 3),
    "c.weight": (16, 24),
    "d.weight": (16, 24),
    "e.weight": (8, 300),
}
Craft = tuple[list[Site], dict[str, tuple[int, ...]], list[str]]


def model(kind: str) -> dict[str, Tensor]:
    """An untouched one."""
    generator = torch.Generator().manual_seed(len(kind))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = {}
    for name, shape in SHAPES.items():
        one = normal(1, *shape[1:])
        made[name] = {
            "random": lambda shape=shape: normal(*shape),
            "correlated": lambda shape=shape, one=one: one + 0.2 * normal(*shape) + 0.3,
            "equal": lambda shape=shape, one=one: one.expand(shape).clone(),
            "zero": lambda shape=shape: torch.zeros(shape),
            "ternary": lambda shape=shape: normal(*shape).round().clamp(-1, 1),
            "half": lambda shape=shape: normal(*shape).half(),
        }[kind]()
    return made


KINDS = ("random", "correlated", "equal", "zero", "ternary", "half")


def craft_part(dice: random.Random, shapes: dict[str, tuple[int, ...]]) -> AnchorPart:
    weight = dice.choice(list(shapes))
    shape = shapes[weight]
    part = AnchorPart(
        weight,
        1,
        axis=dice.choice(["output", "input"]),
        groups=dice.choice([g for g in (1, 1, 2, 4) if shape[0] % g == 0]),
        transposed=dice.random() < 0.2,
        centred=dice.random() < 0.2,
        less_mean_row=dice.random() < 0.2,
    )
    width = anchor_width(shape, part)
    repeats = dice.choice([n for n in (1, 1, 1, 2, 3) if n <= width])
    channels = dice.randint(1, width // repeats)
    start = dice.randint(0, width - channels * repeats)
    return replace(part, channels=channels, repeats=repeats, start=start)


def craft(dice: random.Random) -> Craft:
    """Any number of sites on any rows; some weights are named that nobody has."""
    names = dice.sample(list(SHAPES), dice.randint(1, len(SHAPES)))
    shapes = {
        (name if dice.random() < 0.7 else f"x{dice.random()}"): SHAPES[name] for name in names
    }
    if dice.random() < 0.3:  # more of a shape than there are
        shapes.update({f"more{n}": SHAPES[names[0]] for n in range(dice.randint(1, 3))})
    sites = [craft_site(dice, shapes) for _ in range(dice.randint(1, 3))]
    raw = [site.name for site in sites if dice.random() < 0.3]
    return sites, shapes, raw


def craft_site(dice: random.Random, shapes: dict[str, tuple[int, ...]]) -> Site:
    parts = [craft_part(dice, shapes) for _ in range(dice.choice([1, 1, 2]))]
    return bound(f"norm{dice.random()}", *parts)


def change(dice: random.Random, old: Craft) -> Craft:
    """One step of a climber, who keeps all that suits him."""
    sites, shapes, raw = list(old[0]), old[1], list(old[2])
    place = dice.randrange(len(sites))
    step = dice.choice(["name", "part", "add", "drop", "order", "response"])
    if step == "name":
        sites[place] = replace(sites[place], name=f"norm{dice.random()}")
    elif step == "part":
        parts = [*anchor_of(sites[place]).parts]
        parts[dice.randrange(len(parts))] = craft_part(dice, shapes)
        sites[place] = bound(sites[place].name, *parts)
    elif step == "add" and len(sites) < 4:
        sites.insert(place, craft_site(dice, shapes))
    elif step == "drop" and len(sites) > 1:
        del sites[place]
    elif step == "order":
        dice.shuffle(sites)
    else:
        name = sites[place].name
        raw = [other for other in raw if other != name] + [name] * (name not in raw)
    return sites, shapes, raw


def layout(crafted: Craft) -> Layout:
    sites, shapes, raw = crafted
    return layout_of(sites, shapes, raw)


def evidence(tensors: dict[str, Tensor], made: Layout, passport: Passport = MALLORY) -> Evidence:
    return read_evidence(tensors, ModelKey(passport, made), made)


def score(found: Evidence) -> float:
    """The strength, below zero too, so that a climber sees where it goes up."""
    return -found.log2_p - found.log2_alternatives


def by_name(tensors: dict[str, Tensor], made: Layout) -> tuple[int, int]:
    """Matched and total of the plain reading, without a choice."""
    prepared = prepare_sites(made, tensors, match_names(made, tensors))
    reading = read_signature(ModelKey(MALLORY, made), made, prepared)
    return reading.matched, reading.total


def random_layouts(kind: str, tries: int) -> Iterator[Layout]:
    dice = random.Random(kind)
    for _ in range(tries):
        yield layout(craft(dice))


@pytest.mark.parametrize("kind", KINDS)
def test_no_layout_of_many_suits_a_model(kind: str) -> None:
    tensors, tries = model(kind), 200
    strengths, matched, total, tails = [], 0, 0, []
    for made in random_layouts(kind, tries):
        strengths.append(evidence(tensors, made).strength)
        hit, read = by_name(tensors, made)
        matched, total = matched + hit, total + read
        tails.append(-log2_binomial_tail(hit, read))
    assert max(strengths) < math.log2(tries) + 10
    assert total > 20 * tries and binomtest(matched, total).pvalue > 1e-4
    for bits in (1, 2, 4, 6):
        # A discrete p-value is at most as often below a level as the level says.
        assert (
            binomtest(sum(tail >= bits for tail in tails), tries, 2.0**-bits, "greater").pvalue
            > 1e-4
        )
        assert (
            binomtest(
                sum(strength >= bits for strength in strengths), tries, 2.0**-bits, "greater"
            ).pvalue
            > 1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_no_climber_gets_further_than_luck(kind: str) -> None:
    """Every step keeps what fitted; the key forgets it."""
    dice, tensors, tries, best = random.Random(kind), model(kind), 200, -math.inf
    climbed: list[float] = []
    current = craft(dice)
    for _ in range(tries):
        candidate = change(dice, current)
        found = score(evidence(tensors, layout(candidate)))
        if found >= best:
            current, best = candidate, found
        climbed.append(found)
    assert best < math.log2(tries) + 10
    # The steps late on the way are no better than those at its start.
    late = sum(each >= 2 for each in climbed[tries // 2 :])
    assert binomtest(late, tries // 2, 0.25, "greater").pvalue > 1e-4


def test_overlapping_and_repeated_anchors_are_coins_of_their_own() -> None:
    """Forty sites on the same rows: nobody counts one lucky row forty times."""
    tensors = {"a.weight": model("random")["a.weight"]}
    matched, tries = [], 100
    dice = random.Random(1)
    for _ in range(tries):
        sites = [bound(f"norm{dice.random()}", AnchorPart("a.weight", 24)) for _ in range(20)]
        made = layout_of(sites, {"a.weight": SHAPES["a.weight"]}, [site.name for site in sites[:5]])
        hit, total = by_name(tensors, made)
        assert total == 480
        matched.append(hit)
    assert binomtest(sum(matched), 480 * tries).pvalue > 1e-4
    spread = sum((hit - 240) ** 2 for hit in matched) / tries / 120
    assert abs(spread - 1) < 4 * math.sqrt(2 / tries)


def test_pictures_that_the_claimant_chooses_are_no_way_either() -> None:
    """The rows themselves as pictures, with either sign: they answer, but coins are drawn anew."""
    tensors = model("random")
    sites = [bound(f"norm of {name}", AnchorPart(name, SHAPES[name][0])) for name in SHAPES]
    made = layout_of(sites, SHAPES, [site.name for site in sites])
    best, matched, tries = 0.0, 0, 100
    picture = torch.ones(1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(tries):
        patches = {}
        for name, weight in tensors.items():
            rows = weight.flatten(1)
            mixed = torch.randn(2, len(rows), generator=generator) @ rows
            patches[name] = mixed.T.reshape(1, -1, 2)
        images = PassportImages(picture, picture, patches)
        passport = Passport(bytes(32), MALLORY.owner_message, images)
        found = evidence(tensors, made, passport)
        best = max(best, found.strength)
        reading = read_signature(
            ModelKey(passport, made), made, prepare_sites(made, tensors, {n: n for n in SHAPES})
        )
        matched += reading.matched
    assert best < math.log2(tries) + 10
    assert binomtest(matched, made.bits * tries).pvalue > 1e-4


def test_more_claimed_weights_than_there_are_are_paid_for() -> None:
    """A hundred weights of one shape, of which any may be the one that the suspect has."""
    tensors = {"w": model("random")["c.weight"]}
    dice, tries, strengths = random.Random(2), 40, []
    for _ in range(tries):
        names = [f"w{dice.random()}" for _ in range(60)]
        sites = [bound(f"norm of {name}", AnchorPart(name, 16)) for name in names]
        made = layout_of(sites, dict.fromkeys(names, (16, 24)))
        found = evidence(tensors, made)
        if found.reading.total:
            assert found.log2_alternatives == pytest.approx(1 + math.log2(60))
        strengths.append(found.strength)
    assert max(strengths) < math.log2(tries) + 10
    assert binomtest(sum(each >= 2 for each in strengths), tries, 0.25, "greater").pvalue > 1e-4
