"""Copies whose groups of channels, or units over positions, changed places: proven all the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.attacks.permutation import permute_channels
from passportize.release.claim import claim_of
from passportize.surgery.branches import take_out_branches
from passportize.verification.arbitration import Party, arbitrate
from tests.support.exchanged import EXCHANGED, Grouped
from tests.support.mixing import MIXING
from tests.support.small_protected import PASSPORT
from tests.support.widths import EXAMPLE, as_trained, noised, released, stolen

# Marks are put into models with factors as after a training.
pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

MAKERS = {**EXCHANGED, **MIXING}
THIEF = pp.Passport.generate("Mallory", date="2026-02-01", secret=bytes(range(1, 33)))


def disguised(model: nn.Module) -> nn.Module:
    """The model with everything on it that changes no output."""
    before = model(EXAMPLE)
    disguise(model, torch.Generator().manual_seed(4), example_inputs=EXAMPLE)
    size = float(before.detach().abs().max())
    assert torch.allclose(model(EXAMPLE), before, atol=1e-4 * size)
    return model


def judged(suspect: nn.Module, family: str) -> pp.Verdict:
    own, claim = released(family)
    return pp.verify(suspect, PASSPORT, claim, released=own, example_inputs=EXAMPLE)


@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("family", MAKERS)
def test_a_disguised_copy_is_a_copy(family: str, size: float) -> None:
    suspect = disguised(noised(stolen(family), size))
    plain = pp.verify(suspect, PASSPORT, released(family)[1])
    assert plain.accepted is False and plain.strength < 16
    verdict = judged(suspect, family)
    links = verdict.links
    assert verdict.accepted and links is not None and links.similarity is not None
    assert links.aligned_matched >= (0.9 if size else 1.0) * links.entries_matched
    assert links.similarity.likeness > 0.9


@pytest.mark.parametrize("family", MAKERS)
def test_a_disguised_stranger_stays_one(family: str) -> None:
    links = judged(disguised(as_trained(MAKERS[family], 7)), family).links
    assert links is not None and links.accepted is False and links.similarity is not None
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 16


def test_of_two_who_claim_a_disguised_copy_the_origin_is_found() -> None:
    own, claim = released("group norms")
    suspect = copy.deepcopy(own)
    permute_channels(suspect, torch.Generator().manual_seed(4), example_inputs=EXAMPLE)
    pp.passportize(suspect, THIEF, config=pp.PassportConfig.signature(), example_inputs=EXAMPLE)
    pp.embed_signature(suspect)
    theirs = claim_of(suspect)
    take_out_branches(suspect)
    result = arbitrate(Party(PASSPORT, claim, own), Party(THIEF, theirs, suspect.eval()))
    assert result.owner == 0 and "found once a disguise was undone" in str(result)


def test_the_licensee_of_a_disguised_copy_is_named() -> None:
    model = as_trained(lambda: Grouped(width=320), 0)
    config = pp.PassportConfig.trained(bits=100, licence_bits=700)
    pp.passportize(model, PASSPORT, config=config, example_inputs=EXAMPLE)
    pp.embed_signature(model, calibration=[EXAMPLE])
    claim = claim_of(model)
    take_out_branches(model)
    names = [f"licensee {number}" for number in range(20)]
    copied = copy.deepcopy(model)
    pp.mark_copy(copied, PASSPORT.licensee(names[5]), claim, calibration=[EXAMPLE])
    disguised(copied)
    assert pp.identify(copied, PASSPORT, names, claim).named == ()
    found = pp.identify(copied, PASSPORT, names, claim, released=model, example_inputs=EXAMPLE)
    assert found.named == (names[5],)


@pytest.mark.parametrize("family", ["grouped convolution", "shuffled", "paths", "mixer"])
def test_dummy_channels_on_top_are_taken_out_first(family: str) -> None:
    suspect = stolen(family)
    for variant in VARIANTS:
        assert add_dummy_neurons(suspect, variant, 0.25, example_inputs=EXAMPLE)
    verdict = judged(disguised(suspect), family)
    links = verdict.links
    assert verdict.accepted and links is not None and "channels more" in links.narrowed
    assert links.aligned_matched >= 0.98 * links.entries_matched
