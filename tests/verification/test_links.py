"""Kin is not copy: likeness alone accuses nobody, and a disguised copy has the owner's bits."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.layers.model import switch_of
from passportize.release.claim import Claim, claim_of
from passportize.thresholds import LINK_LIKENESS
from tests.support.small_protected import PASSPORT, TinyNet, images, loader, train


def fine_tuned(model: nn.Module, seed: int, steps: int = 30) -> nn.Module:
    """A copy after some plain training on half of the data."""
    model = copy.deepcopy(model).train()
    x, y = images("train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for _ in range(steps):
        batch = torch.randperm(len(x) // 2, generator=generator)[:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


@functools.cache
def base() -> nn.Module:
    """What somebody has published and everybody may use."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return fine_tuned(TinyNet(), 0, 120)


@functools.cache
def owned() -> tuple[nn.Module, Claim]:
    """The owner's fine-tuning of the base, marked, and the claim on it."""
    model = pp.passportize(
        copy.deepcopy(base()), PASSPORT, config=pp.PassportConfig.signature(margin=1.0)
    )
    pp.embed_signature(model)
    train(model, 1, 0.02)
    claim = claim_of(model)
    switch_of(model).saved = True
    return pp.unpassportize(model), claim


def judged(suspect: nn.Module) -> pp.Verdict:
    released, claim = owned()
    inputs = loader()[0][0]
    return pp.verify(suspect, PASSPORT, claim, released=released, example_inputs=inputs)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_fine_tuning_of_the_same_base_is_kin_and_no_copy(seed: int) -> None:
    verdict = judged(fine_tuned(base(), seed))
    links = verdict.links
    assert links is not None and links.similarity is not None
    # This is what once was enough to be accepted.
    assert links.similarity.accepted and links.similarity.likeness > LINK_LIKENESS
    assert links.aligned_matched < 0.65 * links.aligned_total
    assert verdict.accepted is False and links.accepted is False
    assert "kin, direction unknown" in verdict.reason and "kin" in str(verdict)


def test_the_base_itself_is_kin_and_no_copy() -> None:
    verdict = judged(copy.deepcopy(base()))
    assert verdict.accepted is False and "kin, direction unknown" in verdict.reason


def test_a_disguised_copy_has_the_owners_bits() -> None:
    released, _ = owned()
    suspect = copy.deepcopy(released)
    inputs = loader()[0][0]
    permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    scale_neurons(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    verdict = judged(suspect)
    assert verdict.links is not None and verdict.links.accepted and verdict.accepted
    assert verdict.links.aligned_matched >= 0.99 * verdict.links.aligned_total


def test_a_disguised_copy_that_was_trained_on_is_still_one() -> None:
    released, _ = owned()
    suspect = copy.deepcopy(released)
    inputs = loader()[0][0]
    permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    verdict = judged(fine_tuned(suspect, 5))
    assert verdict.accepted and verdict.links is not None and verdict.links.accepted


def test_a_stranger_is_no_kin() -> None:
    torch.manual_seed(11)
    verdict = judged(fine_tuned(TinyNet(), 7, 120))
    assert verdict.accepted is False and "kin" not in verdict.reason
