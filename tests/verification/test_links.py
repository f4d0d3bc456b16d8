"""Kin is not copy: likeness alone accuses nobody, and a disguised copy has the owner's bits."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import passportize as pp
from passportize.alignment.alignment import align
from passportize.alignment.held_out import fitting_entries
from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.disguise import disguise
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.layers.model import switch_of
from passportize.release.claim import Claim, claim_of
from passportize.signature.evidence import read_by_name
from passportize.signature.model_key import ModelKey
from passportize.thresholds import LINK_LIKENESS
from tests.support.kin import fine_tuned, public_base
from tests.support.small_protected import PASSPORT, TinyNet, loader, train

# Marks are put into trained models here on purpose, at any cost in accuracy.
pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


@functools.cache
def owned() -> tuple[nn.Module, Claim]:
    """The owner's fine-tuning of the base, marked, and the claim on it."""
    model = pp.passportize(
        copy.deepcopy(public_base()), PASSPORT, config=pp.PassportConfig.signature(margin=1.0)
    )
    pp.embed_signature(model)
    train(model, 1, 0.02)
    claim = claim_of(model)
    switch_of(model).saved = True
    return pp.unpassportize(model), claim


def judged(suspect: nn.Module, base: nn.Module | None = None) -> pp.Verdict:
    released, claim = owned()
    inputs = loader()[0][0]
    return pp.verify(suspect, PASSPORT, claim, released=released, base=base, example_inputs=inputs)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_fine_tuning_of_the_same_base_is_kin_and_no_copy(seed: int) -> None:
    verdict = judged(fine_tuned(public_base(), seed))
    links = verdict.links
    assert links is not None and links.similarity is not None
    # This is what once was enough to be accepted.
    assert links.similarity.accepted and links.similarity.likeness > LINK_LIKENESS
    assert links.aligned_matched < 0.65 * links.aligned_total
    assert verdict.accepted is False and links.accepted is False
    assert "kin, direction unknown" in verdict.reason and "kin" in str(verdict)


def test_the_base_itself_is_kin_and_no_copy() -> None:
    verdict = judged(copy.deepcopy(public_base()))
    assert verdict.accepted is False and "kin, direction unknown" in verdict.reason


def test_a_disguised_copy_has_the_owners_bits() -> None:
    released, _ = owned()
    suspect = copy.deepcopy(released)
    inputs = loader()[0][0]
    permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    scale_neurons(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    verdict = judged(suspect)
    assert verdict.links is not None and verdict.links.accepted and verdict.accepted
    links = verdict.links
    # Not the first layer's kernels of nine entries: six of them are weak evidence by themselves.
    assert links.aligned_matched == links.entries_matched >= 0.94 * links.aligned_total
    assert links.aligned_strength >= 64


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


@pytest.mark.parametrize("copied", [True, False])
def test_progress_comes_to_its_end_once(copied: bool) -> None:
    released, claim = owned()
    torch.manual_seed(12)
    suspect = copy.deepcopy(released) if copied else TinyNet().eval()
    inputs = loader()[0][0]
    permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    seen: list[tuple[int, int]] = []
    pp.verify(
        suspect,
        PASSPORT,
        claim,
        released=released,
        example_inputs=inputs,
        progress=lambda *step: seen.append(step),
    )
    (total,) = {total for _, total in seen}
    done = [done for done, _ in seen]
    assert done == sorted(set(done)) and done[-1] == total and len(done) > 2


# --- a public ancestor is taken out of both ------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_beyond_the_base_another_fine_tuning_is_a_stranger(seed: int) -> None:
    verdict = judged(fine_tuned(public_base(), seed), public_base())
    links = verdict.links
    assert links is not None and links.similarity is not None and links.base
    assert links.similarity.likeness < 0.6 * LINK_LIKENESS and not links.kin
    assert verdict.accepted is False and "beyond the base" in verdict.reason
    assert "likeness beyond the base" in str(verdict)


def test_beyond_the_base_a_disguised_copy_is_still_one() -> None:
    released, _ = owned()
    suspect = copy.deepcopy(released)
    inputs = loader()[0][0]
    suspect = fine_tuned(suspect, 5)
    permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    scale_neurons(suspect, torch.Generator().manual_seed(0), example_inputs=inputs)
    verdict = judged(suspect, public_base())
    links = verdict.links
    assert links is not None and links.similarity is not None and verdict.accepted
    assert links.similarity.likeness > LINK_LIKENESS and links.aligned_strength >= 64


def test_a_base_goes_with_released_weights_and_is_of_their_kind() -> None:
    released, claim = owned()
    with pytest.raises(pp.errors.InvalidArgument, match="goes with released="):
        pp.verify(released, PASSPORT, claim, base=public_base())
    stranger = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    suspect, inputs = fine_tuned(public_base(), 1), loader()[0][0]
    with pytest.raises(pp.errors.InvalidArgument, match=r"base= has only [01] of the \d+ tensors"):
        pp.verify(
            suspect,
            PASSPORT,
            claim,
            released=released,
            base=stranger,
            example_inputs=inputs,
        )


# --- bits after an alignment ---------------------------------------------------------------------


class Wide(nn.Module):
    """Many short rows, among which an alignment finds some that resemble any."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.second, self.wide = nn.Conv2d(16, 512, 1), nn.BatchNorm2d(512)
        self.last = nn.Conv2d(512, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(self.second(torch.relu(self.norm(self.first(x))))))
        return self.last(x).mean((2, 3))


def test_a_strangers_bits_are_at_chance_on_entries_that_were_not_looked_at() -> None:
    """On those that were they are not: an alignment prefers what resembles marked weights."""
    x = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    model = pp.passportize(Wide(), PASSPORT, config=pp.PassportConfig.signature())
    pp.embed_signature(model)
    claim = claim_of(model)
    switch_of(model).saved = True
    released = pp.unpassportize(model).state_dict()
    key = ModelKey(PASSPORT, claim.layout)
    unread = {name: fitting_entries(tensor.shape) for name, tensor in released.items()}
    looked_at = {name: ~entries for name, entries in unread.items()}
    found = {"kept": 0, "looked at": 0}
    for seed in range(8):
        torch.manual_seed(100 + seed)
        suspect = Wide()
        tied = find_tied_channels(suspect, x)
        aligned = align(released, suspect.state_dict(), tied).tensors
        for name, left_out in (("kept", unread), ("looked at", looked_at)):
            found[name] += read_by_name(aligned, key, claim.layout, left_out).reading.matched
    total = 8 * claim.layout.bits
    deviation = (total / 4) ** 0.5
    assert abs(found["kept"] - total / 2) < 3.5 * deviation
    assert found["looked at"] > total / 2 + 4 * deviation


# --- very long rows ------------------------------------------------------------------------------


def _transformer(seed: int) -> nn.Module:
    """Its hidden layers are so wide that likeness is measured on some of their columns alone."""
    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_ratio=44, num_classes=4
    )


def test_layers_of_more_than_two_thousand_inputs_keep_enough_to_be_compared() -> None:
    """Where all rows share the columns that an alignment looked at, others have to be compared."""
    x = torch.randn(2, 3, 16, 16)
    config = pp.PassportConfig.signature()
    model = pp.passportize(_transformer(0), PASSPORT, config=config, example_inputs=x)
    pp.embed_signature(model)
    claim = claim_of(model)
    switch_of(model).saved = True
    released = pp.unpassportize(model).eval()
    copied = copy.deepcopy(released)
    disguise(copied, torch.Generator().manual_seed(1), example_inputs=x)
    stranger = _transformer(1).eval()
    for suspect, likeness in ((copied, 1.0), (stranger, 0.0)):
        verdict = pp.verify(suspect, PASSPORT, claim, released=released, example_inputs=x)
        assert verdict.accepted is (suspect is copied)
        assert verdict.links is not None and verdict.links.similarity is not None
        assert verdict.links.similarity.likeness == pytest.approx(likeness, abs=0.03)
