"""The claimant as attacker: claims written to suit a model that nobody marked.

All that a claimant chooses is drawn here, at random or by climbing: number, names and order of
sites, the rows of every part and what is taken from them, overlapping and repeated, responses,
names of weights that nobody has, more of a shape than there are, and the owner message.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_format import check_claim, claim_from
from passportize.signature.evidence import Evidence, read_evidence
from passportize.signature.layout import anchor_of
from passportize.signature.marking import Marking
from passportize.signature.matching import BY_NAME, match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.rows import anchor_width
from passportize.signature.site import AnchorPart, Site
from tests.support.layouts import KEYED, PAPER, bound

SHAPES = {
    "a.weight": (24, 3, 3, 3),
    "b.weight": (24, 3, 3, 3),
    "c.weight": (16, 24),
    "d.weight": (16, 24),
    "e.weight": (8, 300),
}
KINDS = ("random", "correlated", "equal", "zero", "ternary", "half")


def untouched_model(kind: str) -> dict[str, Tensor]:
    """Weights of one of the :data:`KINDS`, by name."""
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


@dataclass(frozen=True)
class Craft:
    """The choices of a claimant.

    Attributes:
        owner: Of the passport; its secret is always the same.
        sites: Bound sites, in order.
        shapes: Of the weights that they name.
        raw: Names of the sites that have the response of ``paper``.
    """

    owner: str
    sites: tuple[Site, ...]
    shapes: dict[str, tuple[int, ...]]
    raw: frozenset[str] = frozenset()

    @functools.cached_property
    def passport(self) -> Passport:
        return Passport.generate(self.owner, date="2026-01-31", secret=bytes(32))

    @functools.cached_property
    def claim(self) -> Claim:
        """As it is read from a file, which refuses what does not belong together."""
        used = {part.weight for site in self.sites for part in anchor_of(site).parts}
        configs = tuple(PAPER if site.name in self.raw else KEYED for site in self.sites)
        marking = Marking(KEYED, self.sites, configs, {name: self.shapes[name] for name in used})
        tensors = {}
        for index, (site, config) in enumerate(zip(self.sites, configs, strict=True)):
            if config is PAPER:
                tensors[f"{index}.bottleneck.0.weight"] = torch.zeros(1, site.channels)
                tensors[f"{index}.bottleneck.2.weight"] = torch.zeros(site.channels, 1)
        digest = "0" * 64
        made = Claim("Net", "", marking, self.passport.commitment(), digest, tensors)
        claim = claim_from(made.header(), tensors)
        check_claim(claim)
        return claim


def craft(dice: random.Random) -> Craft:
    """Anything that a claim may say."""
    names = dice.sample(list(SHAPES), dice.randint(1, len(SHAPES)))
    shapes = {
        (name if dice.random() < 0.7 else f"x{dice.random()}"): SHAPES[name] for name in names
    }
    if dice.random() < 0.3:  # more of a shape than there are
        shapes.update({f"more{n}": SHAPES[names[0]] for n in range(dice.randint(1, 3))})
    sites = tuple(_site(dice, shapes) for _ in range(dice.randint(1, 3)))
    raw = frozenset(site.name for site in sites if dice.random() < 0.3)
    return Craft(f"Mallory {dice.randint(0, 9)}", sites, shapes, raw)


def _site(dice: random.Random, shapes: dict[str, tuple[int, ...]]) -> Site:
    parts = [_part(dice, shapes) for _ in range(dice.choice([1, 1, 2]))]
    return bound(f"norm{dice.random()}", *parts)


def _part(dice: random.Random, shapes: dict[str, tuple[int, ...]]) -> AnchorPart:
    weight = dice.choice(list(shapes))
    shape = shapes[weight]
    part = AnchorPart(
        weight,
        1,
        axis=dice.choice(["output", "input"]),
        transposed=dice.random() < 0.2,
        centred=dice.random() < 0.2,
        less_mean_row=dice.random() < 0.2,
    )
    if len(shape) == 2 and dice.random() < 0.2:  # as a list of flattened kernels
        part = replace(part, expert_shape=(shape[1] // 12, 4, 3))
    rows = (part.expert_shape or shape)[0]
    part = replace(part, groups=dice.choice([g for g in (1, 1, 2, 4) if rows % g == 0]))
    width = anchor_width(shape, part)
    repeats = dice.choice([n for n in (1, 1, 1, 2, 3) if n <= width])
    channels = dice.randint(1, width // repeats)
    start = dice.randint(0, width - channels * repeats)
    return replace(part, channels=channels, repeats=repeats, start=start)


def changed(dice: random.Random, old: Craft) -> Craft:
    """One step of a climber, who keeps all else."""
    sites, raw = list(old.sites), old.raw
    place = dice.randrange(len(sites))
    step = dice.choice(["owner", "name", "part", "add", "drop", "order", "response"])
    if step == "owner":
        return replace(old, owner=f"Mallory {dice.random()}")
    if step == "name":
        sites[place] = replace(sites[place], name=f"norm{dice.random()}")
    elif step == "part":
        parts = [*anchor_of(sites[place]).parts]
        parts[dice.randrange(len(parts))] = _part(dice, old.shapes)
        sites[place] = bound(sites[place].name, *parts)
    elif step == "add" and len(sites) < 4:
        sites.insert(place, _site(dice, old.shapes))
    elif step == "drop" and len(sites) > 1:
        del sites[place]
    elif step == "order":
        dice.shuffle(sites)
    else:
        raw = raw ^ {sites[place].name}
    return replace(old, sites=tuple(sites), raw=raw)


@dataclass(frozen=True)
class Try:
    """What one claim comes to.

    Attributes:
        evidence: With both looks.
        matched: Bits that match in the reading by name, where nothing is chosen.
        total: Bits read by name.
    """

    evidence: Evidence
    matched: int
    total: int

    @property
    def score(self) -> float:
        """The strength, below zero too, so that a climber sees where it goes up."""
        return -self.evidence.log2_p - self.evidence.log2_alternatives


def judged(tensors: dict[str, Tensor], crafted: Craft) -> Try:
    """Both looks at a model, and the plain reading by name."""
    layout = crafted.claim.layout
    key = ModelKey(crafted.passport, layout)
    evidence = read_evidence(tensors, key, layout)
    reading = evidence.reading
    if evidence.matched_by != BY_NAME:
        prepared = prepare_sites(layout, tensors, match_names(layout, tensors))
        reading = read_signature(key, layout, prepared)
    return Try(evidence, reading.matched, reading.total)


def random_tries(kind: str, tries: int, seed: int = 0) -> list[Try]:
    """So many claims at random, against one kind of model."""
    dice, tensors = random.Random(f"{kind} {seed}"), untouched_model(kind)
    return [judged(tensors, craft(dice)) for _ in range(tries)]


def climbing_tries(kind: str, tries: int, seed: int = 0, patience: int = 50) -> list[Try]:
    """So many claims, each a change of the best before it; a fresh start where none is better.

    No claim is tried twice, since it would come to the same again.
    """
    dice, tensors = random.Random(f"climbing {kind} {seed}"), untouched_model(kind)
    current, best, waited = craft(dice), -math.inf, 0
    done: dict[tuple[str, str], Try] = {}
    while len(done) < tries:
        fresh = waited > patience
        candidate = craft(dice) if fresh else changed(dice, current)
        name = candidate.owner, candidate.claim.layout.digest()
        if name in done:
            continue
        found = done[name] = judged(tensors, candidate)
        waited = 0 if fresh or found.score > best else waited + 1
        if fresh or found.score >= best:
            current, best = candidate, found.score
    return list(done.values())
