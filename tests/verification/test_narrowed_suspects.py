"""Of a suspect with fewer channels what is left is read; a narrower stranger stays a stranger."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.alignment.similarity import Similarity
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from passportize.attacks.permutation import permute_channels
from passportize.attacks.prune_channels import prune_channels
from passportize.signature.null_model import log2_binomial_tail
from passportize.utils.resized import of_widths
from passportize.verification.links import Links
from tests.support.depths import reshaped
from tests.support.small_protected import PASSPORT
from tests.support.widths import (
    EXAMPLE,
    FAMILIES,
    Residual,
    ShortRows,
    as_trained,
    judged,
    noised,
    released,
    seeded,
    stolen,
)
from tests.verification.test_identification import released as licensed

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)
FAMILY = ("residual", "dense", "inverted", "transformer", "chained")


def measured(verdict: pp.Verdict) -> tuple[Links, Similarity]:
    links = verdict.links
    assert links is not None and links.similarity is not None
    return links, links.similarity


def strength(matched: int, total: int) -> float:
    return -log2_binomial_tail(matched, total)


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("share", [0.15, 0.4])
@pytest.mark.parametrize("more", ["alone", "disguised", "disguised and cut"])
def test_what_is_left_is_read(family: str, share: float, more: str) -> None:
    suspect = stolen(family)
    gone = prune_channels(suspect, share, EXAMPLE)
    if more != "alone":
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    if more == "disguised and cut":
        reshaped(suspect, "layers")
    plain = pp.verify(suspect, PASSPORT, released(family)[1])
    if family != "transformer" or more != "alone":
        # Of a transformer in which only hidden units were taken out, all else reads plainly.
        assert plain.accepted is not True
        verdict = judged(family, suspect)
        links, similarity = measured(verdict)
        assert similarity.likeness > 0.97 and links.kin
        kept = strength(links.aligned_matched, links.aligned_total)
        assert kept >= 0.9 * strength(links.entries_matched, links.aligned_total)
        # Between square layers lies a matrix, and its rank falls with theirs.
        told = links.narrowed.partition(" channels fewer than were released")[0].split()[-1]
        assert int(told) >= gone if family == "chained" else int(told) == gone
        assert links.narrowed in str(verdict)


@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
def test_a_copy_with_fewer_channels_is_accepted(family: str) -> None:
    suspect = stolen(family)
    prune_channels(suspect, 0.15, EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    verdict = judged(family, suspect)
    assert verdict.accepted is True
    # Of channels that are gone no bit is counted.
    links, _ = measured(verdict)
    whole, _ = measured(judged(family, disguised(family)))
    assert family == "transformer" or links.aligned_total < whole.aligned_total


def disguised(family: str) -> nn.Module:
    suspect = stolen(family)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    return suspect


def with_dummies(model: nn.Module, *variants: str) -> int:
    return sum(add_dummy_neurons(model, kind, 0.1, seeded(1), EXAMPLE) for kind in variants)


@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
def test_dummies_beside_what_is_missing(family: str) -> None:
    suspect = stolen(family)
    gone = prune_channels(suspect, 0.15, EXAMPLE)
    assert with_dummies(suspect, "split", "zero")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links, similarity = measured(judged(family, reshaped(suspect, "layers")))
    assert links.accepted and similarity.likeness > 0.98
    assert links.aligned_matched == links.entries_matched
    assert f"{gone} channels fewer" in links.narrowed


def resized(model: nn.Module, inner: int, outer: int) -> nn.Module:
    """A :class:`Residual` with other numbers of channels, its last real ones or copies."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def along(name: str, dim: int, size: int, reads: bool = False) -> None:
        tensor = state[name]
        own = tensor.shape[dim]
        places = torch.arange(size) % own
        tensor = tensor.index_select(dim, places)
        if reads:
            counts = torch.bincount(places, minlength=own)[places]
            shape = [-1 if at == dim else 1 for at in range(tensor.dim())]
            tensor = tensor / counts.view(shape)
        state[name] = tensor

    for layer, reader, size in (("first", "second", inner), ("third", "fourth", outer)):
        for key in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            along(f"{layer}.{key}", 0, size)
        along(f"{reader}.0.weight", 1, size, reads=True)
    return of_widths(model, state)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_more_channels_here_and_fewer_there(noise: float) -> None:
    suspect = resized(stolen("residual"), 30, 40)
    permute_channels(suspect, seeded(3), example_inputs=EXAMPLE)
    suspect = noised(suspect, noise)
    links, similarity = measured(judged("residual", suspect))
    assert links.accepted and similarity.likeness > 0.98
    assert "8 channels fewer" in links.narrowed
    told = "6 channels more" if noise else "6 of its channels copied others"
    assert told in links.narrowed
    stranger = resized(as_trained(Residual, 7), 30, 40)
    links, similarity = measured(judged("residual", stranger))
    assert links.accepted is False and abs(similarity.likeness) < 0.1
    assert links.aligned_strength < 12


@pytest.mark.parametrize("family", ["residual", "dense", "inverted"])
def test_with_noise_on_top(family: str) -> None:
    suspect = stolen(family)
    prune_channels(suspect, 0.15, EXAMPLE)
    links, similarity = measured(judged(family, noised(suspect, 0.1)))
    assert similarity.likeness > 0.9
    assert strength(links.aligned_matched, links.aligned_total) >= 0.6 * strength(
        links.entries_matched, links.aligned_total
    )


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_a_narrower_stranger_stays_at_chance(family: str, share: float) -> None:
    suspect = as_trained(FAMILIES[family], 7)
    prune_channels(suspect, share, EXAMPLE)
    verdict = judged(family, suspect)
    links, similarity = measured(verdict)
    assert verdict.accepted is False
    assert abs(similarity.likeness) < 0.15 and links.aligned_strength < 12


def test_a_strangers_bits_are_at_chance_whatever_channels_are_left_over() -> None:
    matched = total = 0
    for seed in range(10):
        suspect = as_trained(lambda: ShortRows(160), 100 + seed)
        links, _ = measured(judged("short rows", suspect))
        matched, total = matched + links.aligned_matched, total + links.aligned_total
    assert total > 1000 and abs(matched - total / 2) < 3.5 * (total / 4) ** 0.5


def test_a_file_beside_a_model_of_the_released_width(tmp_path: Path) -> None:
    suspect = stolen("residual")
    prune_channels(suspect, 0.15, EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    torch.save(suspect.state_dict(), tmp_path / "suspect.pt")
    model = as_trained(Residual, 9)
    before = copy.deepcopy(model.state_dict())
    assert judged("residual", tmp_path / "suspect.pt", model=model).accepted is True
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_suspect_is_left_as_it_was() -> None:
    suspect = stolen("inverted")
    prune_channels(suspect, 0.3, EXAMPLE)
    before = copy.deepcopy(suspect.state_dict())
    judged("inverted", suspect)
    after = suspect.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_little_is_left_to_be_laid_beside() -> None:
    verdict = judged("short rows", as_trained(lambda: ShortRows(24), 3))
    assert verdict.accepted is not True and "less than one of 8 of its channels" in verdict.reason


def test_a_licensee_is_told_by_a_narrower_copy() -> None:
    original, claim = licensed()
    passport = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
    suspect = copy.deepcopy(original)
    inputs = torch.rand(12, 8, 6, 6, generator=seeded(1))
    pp.mark_copy(suspect, passport.licensee("licensee 3"), claim, calibration=[inputs])
    assert prune_channels(suspect, 0.1, inputs)
    disguise(suspect, seeded(2), example_inputs=inputs)
    names = [f"licensee {number}" for number in range(6)]
    options = {"released": original, "example_inputs": inputs}
    assert pp.identify(suspect, passport, names, claim, **options).named == ("licensee 3",)
    assert pp.identify(suspect, passport, names, claim).named == ()
