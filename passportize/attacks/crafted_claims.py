"""The claimant as attacker: claims written to suit a model that they did not mark.

All that a claimant chooses is drawn here, at random or by climbing: number, names and order of
sites, the rows of every part and what is taken from them, overlapping and repeated, responses,
names of weights that nobody has, more of a shape than there are, and the owner message. Every
choice is part of the layout, from which the key of the model is drawn, so the climber forgets with
each step what he had found.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.weights import matrix_weights
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_format import check_claim, claim_from
from passportize.schemes.own import OwnScheme
from passportize.signature.evidence import Evidence, read_evidence
from passportize.signature.layout import anchor_of
from passportize.signature.marking import Marking
from passportize.signature.matching import BY_NAME, match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.rows import anchor_width
from passportize.signature.site import Anchor, AnchorPart, Role, Site

__all__ = ["Craft", "Try", "changed_claim", "climbing_tries", "crafted_claim", "judged_claim"]

Shapes = Mapping[str, tuple[int, ...]]


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
    shapes: Shapes
    raw: frozenset[str] = frozenset()

    @functools.cached_property
    def passport(self) -> Passport:
        """The claimant's."""
        return Passport.generate(self.owner, date="2026-01-31", secret=bytes(32))

    @functools.cached_property
    def claim(self) -> Claim:
        """As it is read from a file, which refuses what does not belong together."""
        keyed, paper = PassportConfig.keyed(), PassportConfig.paper()
        used = {part.weight for site in self.sites for part in anchor_of(site).parts}
        configs = tuple(paper if site.name in self.raw else keyed for site in self.sites)
        marking = Marking(keyed, self.sites, configs, {name: self.shapes[name] for name in used})
        tensors = {}
        for index, (site, config) in enumerate(zip(self.sites, configs, strict=True)):
            if config is paper:
                tensors[f"{index}.bottleneck.0.weight"] = torch.zeros(1, site.channels)
                tensors[f"{index}.bottleneck.2.weight"] = torch.zeros(site.channels, 1)
        digest = "0" * 64
        made = Claim("Net", "", marking, self.passport.commitment(), digest, tensors)
        claim = claim_from(made.header(), tensors)
        check_claim(claim)
        return claim


def crafted_claim(dice: random.Random, shapes: Shapes) -> Craft:
    """Anything that a claim may say of a model.

    Args:
        dice: Source of all choices.
        shapes: Of the model's weights, by name.
    """
    names = dice.sample(list(shapes), dice.randint(1, min(len(shapes), 8)))
    chosen = {
        (name if dice.random() < 0.7 else f"x{dice.random()}"): shapes[name] for name in names
    }
    if dice.random() < 0.3:  # more of a shape than there are
        chosen.update({f"more{n}": shapes[names[0]] for n in range(dice.randint(1, 3))})
    sites = tuple(_site(dice, chosen) for _ in range(dice.randint(1, 3)))
    raw = frozenset(site.name for site in sites if dice.random() < 0.3)
    return Craft(f"Mallory {dice.randint(0, 9)}", sites, chosen, raw)


def changed_claim(dice: random.Random, old: Craft) -> Craft:
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
        sites[place] = _bound(sites[place].name, parts)
    elif step == "add" and len(sites) < 4:
        sites.insert(place, _site(dice, old.shapes))
    elif step == "drop" and len(sites) > 1:
        del sites[place]
    elif step == "order":
        dice.shuffle(sites)
    else:
        raw = raw ^ {sites[place].name}
    return replace(old, sites=tuple(sites), raw=raw)


def _bound(name: str, parts: list[AnchorPart]) -> Site:
    channels = sum(part.channels for part in parts)
    anchor = Anchor(tuple(parts), "user")
    return Site(name, "torch.nn.BatchNorm2d", Role.BOUND, channels, anchor=anchor)


def _site(dice: random.Random, shapes: Shapes) -> Site:
    parts = [_part(dice, shapes) for _ in range(dice.choice([1, 1, 2]))]
    return _bound(f"norm{dice.random()}", parts)


def _part(dice: random.Random, shapes: Shapes) -> AnchorPart:
    weight = dice.choice(list(shapes))
    shape = shapes[weight]
    part = AnchorPart(
        weight,
        1,
        axis=dice.choice(["output", "input"]),
        transposed=dice.random() < 0.2,
        centred=dice.random() < 0.2,
        less_mean_row=dice.random() < 0.2,
        factor=dice.choice(list(shapes)) if dice.random() < 0.2 else "",
    )
    # As a list of flattened kernels.
    if len(shape) == 2 and shape[1] % 12 == 0 and dice.random() < 0.2:
        part = replace(part, expert_shape=(shape[1] // 12, 4, 3))
    rows = (part.expert_shape or shape)[0]
    part = replace(part, groups=dice.choice([g for g in (1, 1, 2, 4) if rows % g == 0]))
    width = anchor_width(shape, part)
    repeats = dice.choice([n for n in (1, 1, 1, 2, 3) if n <= width])
    channels = dice.randint(1, width // repeats)
    start = dice.randint(0, width - channels * repeats)
    return replace(part, channels=channels, repeats=repeats, start=start)


@dataclass(frozen=True)
class Try:
    """What one claim comes to.

    Attributes:
        crafted: The claim.
        evidence: With both looks.
        matched: Bits that match in the reading by name, where nothing is chosen.
        total: Bits read by name.
    """

    crafted: Craft
    evidence: Evidence
    matched: int
    total: int

    @property
    def score(self) -> float:
        """The strength, below zero too, so that a climber sees where it goes up."""
        return -self.evidence.log2_p - self.evidence.log2_alternatives


def judged_claim(tensors: Mapping[str, Tensor], crafted: Craft) -> Try:
    """Both looks at a model, and the plain reading by name."""
    layout = crafted.claim.layout
    key = ModelKey(crafted.passport, layout)
    evidence = read_evidence(tensors, key, layout)
    reading = evidence.reading
    if evidence.matched_by != BY_NAME:
        prepared = prepare_sites(layout, tensors, match_names(layout, tensors))
        reading = read_signature(key, layout, prepared)
    return Try(crafted, evidence, reading.matched, reading.total)


def climbing_tries(
    tensors: Mapping[str, Tensor],
    tries: int,
    dice: random.Random,
    patience: int = 50,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Try]:
    """So many claims, each a change of the best before it; a fresh start where none is better.

    No claim is tried twice, since it would come to the same again.

    Args:
        tensors: Weights of somebody's model, by name, of two dimensions or more.
        tries: How many claims.
        dice: Source of all choices.
        patience: Steps without success before a fresh start.
        on_step: Called with the tries done and their total.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    current, best, waited = crafted_claim(dice, shapes), -math.inf, 0
    done: dict[tuple[str, str], Try] = {}
    while len(done) < tries:
        fresh = waited > patience
        candidate = crafted_claim(dice, shapes) if fresh else changed_claim(dice, current)
        name = candidate.owner, candidate.claim.layout.digest()
        if name in done:
            continue
        found = done[name] = judged_claim(tensors, candidate)
        waited = 0 if fresh or found.score > best else waited + 1
        if fresh or found.score >= best:
            current, best = candidate, found.score
        if on_step is not None:
            on_step(len(done), tries)
    return list(done.values())


@register_attack(
    "crafted-claims",
    kind="forgery",
    needs=("scheme",),
    source="this library",
    expected="forges nothing: each choice of a claimant draws all bits anew",
)
def _attack(model: nn.Module, means: Means) -> Attacked:
    """Claims written and improved to suit the model, as many as there are steps."""
    if not isinstance(means.scheme, OwnScheme):
        raise InvalidArgument(
            "crafted-claims writes claims of this library; give scheme=keyed, signature or paper"
        )
    weights = matrix_weights(model, "crafted-claims")
    tensors = {name: weight.detach().cpu() for name, weight in weights.items()}
    dice, tries = random.Random(means.seed), max(1, means.steps)
    found = climbing_tries(tensors, tries, dice, on_step=means.on_step)
    best = max(found, key=lambda each: each.score)
    forged = Forged(best.crafted.passport, best.crafted.claim)
    figures = {"strength of the best claim": best.evidence.strength}
    return Attacked(None, forged, tries, 0, figures)
