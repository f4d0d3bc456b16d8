"""Drawing keys until one fits: the attack that the threshold of a verdict is about."""

from __future__ import annotations

import hashlib

from torch import nn

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.passport.passport import Passport
from passportize.schemes.scheme import Finding

__all__: list[str] = []


@register_attack(
    "key-search",
    kind="forgery",
    needs=("scheme",),
    source="usual; a random key reaches p = 0.02 against some schemes",
    expected="forges nothing whose verdict asks for 64 bits: so many tries take 2^64 keys",
)
def _attack(model: nn.Module, means: Means, *, owner: str = "Mallory") -> Attacked:
    """So many keys as there are steps, and the one whose bits match best."""
    assert means.scheme is not None
    example = example_of(model, means)
    best: tuple[Finding, Forged] | None = None
    for step in range(max(1, means.steps)):
        secret = hashlib.sha256(f"key-search/{means.seed}/{step}".encode()).digest()
        passport = Passport.generate(owner, date="2026-01-01", secret=secret)
        branch = means.scheme.brought(model, passport, None, example)
        if branch is not None:
            claim = branch.kept()
        else:
            claim = means.scheme.forge(model, passport, None, example)
        finding = means.scheme.verify(model, passport, claim)
        if best is None or finding.strength > best[0].strength:
            best = finding, Forged(passport, claim)
        if means.on_step is not None:
            means.on_step(step + 1, means.steps)
    assert best is not None
    figures = {"strength of the best key": best[0].strength}
    return Attacked(None, best[1], max(1, means.steps), 0, figures)
