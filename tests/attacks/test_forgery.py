"""Forged claims pass where a scheme leaves something to the claimant, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from passportize.attacks import run_attack
from passportize.attacks.erb import BLOCKS, Substitute
from passportize.errors import InvalidArgument
from passportize.signature.site import Role, Site
from tests.support.bench import OWNER, SCHEMES, attacked, means, released

OPEN = ("deepipr", "paper", "uchida")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_closed_form_forges_what_is_left_to_the_claimant(scheme: str) -> None:
    rating = attacked("closed-form", scheme)
    assert rating.forged is not None and rating.succeeded is (scheme in OPEN)
    assert rating.cost.steps == rating.cost.samples == 0
    if scheme in OPEN:
        assert rating.forged.bit_accuracy == 1.0
    else:
        assert rating.forged.strength < 24


@pytest.mark.parametrize("block", BLOCKS)
def test_erb_finds_a_forged_branch(block: str) -> None:
    has = {"leaked": OWNER, "claim": released("paper").claim}
    rating = attacked("erb", "paper", has, block=block, share=0.5)
    assert rating.forged is not None and rating.succeeded
    assert rating.forged.public_accuracy is not None and rating.forged.private_accuracy is not None
    assert rating.forged.private_accuracy > rating.forged.public_accuracy - 5
    assert 0 <= rating.figures["BDR"] <= 1
    assert rating.after == rating.before


def test_erb_is_refused_by_ours() -> None:
    rating = attacked("erb", "keyed")
    assert rating.forged is not None and rating.forged.accepted is False
    assert rating.owner.accepted is True


def test_the_blocks_are_those_of_the_paper() -> None:
    sites = [Site("a", "torch.nn.BatchNorm2d", Role.BOUND, 16)]
    counts = {
        block: sum(each.numel() for each in Substitute(sites, block).parameters())
        for block in BLOCKS
    }
    # Scale and shift; for each channel 1 -> 10 -> 1; 16 -> 2 -> 16; all with biases.
    assert counts["none"] == 32
    assert counts["IERB"] == 32 + 16 * (10 + 10 + 10 + 1)
    assert counts["CERB"] == 32 + (2 * 16 + 2) + (16 * 2 + 16)
    # The residual: with a block of zeros the scale is what it was.
    for block in ("CERB", "IERB"):
        substitute = Substitute(sites, block)
        for parameter in substitute.blocks.parameters():
            torch.nn.init.zeros_(parameter)
        assert torch.equal(substitute.factors()["a"][0], torch.ones(16))
    with pytest.raises(InvalidArgument, match="block='other'"):
        Substitute(sites, "other")


@pytest.mark.parametrize(("scheme", "flip"), [("deepipr", 0.1), ("keyed", 0.1)])
def test_leaked_passports_with_flipped_bits(scheme: str, flip: float) -> None:
    release = released(scheme)
    has = {"leaked": OWNER, "claim": release.claim}
    rating = attacked("ambiguity-2", scheme, has, flip=flip)
    assert rating.forged is not None and rating.succeeded is (scheme in OPEN)
    if scheme == "deepipr":
        assert rating.figures["flipped bits reached"] > 0.8
        assert rating.figures["cosine to the owner's passports"] > 0.5
    else:
        assert "follows from the passport alone" in rating.notes[0]


def test_attack_ii_trains_the_bottleneck() -> None:
    """Which the published code forgets: then it stays as it was drawn."""
    release = released("paper")
    has = means(release, leaked=OWNER, claim=release.claim, steps=2)
    shown = [
        run_attack("ambiguity-2", release.model, has.__class__(**{**has.__dict__, "steps": steps}))
        for steps in (0, 2)
    ]
    first, second = (outcome.forged.claim for outcome in shown)
    for before, after in zip(
        first.bottlenecks.parameters(), second.bottlenecks.parameters(), strict=True
    ):
        assert not torch.equal(before, after)
    assert int((first.bits != released_bits(release)).sum()) == round(0.1 * len(first.bits))


def released_bits(release) -> torch.Tensor:
    branch = release.scheme.brought(
        release.model, OWNER, release.claim, means(release).example_inputs
    )
    return branch.bits


def test_random_passports_with_a_fixed_bottleneck_fall_short() -> None:
    rating = attacked("ambiguity-1", "paper")
    assert rating.forged is not None and rating.forged.bit_accuracy == 1.0
    assert rating.forged.private_accuracy is not None
    assert rating.forged.private_accuracy < rating.before


def test_searching_forges_nothing() -> None:
    for name, steps in (("key-search", 3), ("crafted-claims", 30)):
        rating = attacked(name, "signature", {"steps": steps})
        assert rating.forged is not None and not rating.succeeded
        assert rating.forged.strength < 24 and rating.cost.steps == steps
    with pytest.raises(InvalidArgument, match="writes claims of this library"):
        attacked("crafted-claims", "uchida")
