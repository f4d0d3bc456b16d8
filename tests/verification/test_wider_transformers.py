"""Heads and residual streams of another width than was released are read all the same."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from passportize.attacks.wider_heads import widen_heads
from passportize.attacks.wider_streams import widen_streams
from passportize.release.claim import Claim, claim_of
from passportize.surgery.branches import take_out_branches
from tests.support import looked_through as kinds
from tests.support.small_protected import PASSPORT
from tests.support.widths import as_trained, marked, noised, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

EXAMPLE = torch.randn(2, 6, kinds.INPUTS, generator=seeded())
KINDS = [kinds.Attention, kinds.Cosine, kinds.TableOfHeads]


@functools.cache
def released(
    kind: type[nn.Module], norm: type[nn.Module] = nn.LayerNorm
) -> tuple[nn.Module, Claim]:
    return marked(lambda: kinds.Tokens(kind, norm), EXAMPLE)


def judged(
    kind: type[nn.Module], suspect: nn.Module, norm: type[nn.Module] = nn.LayerNorm
) -> pp.Verdict:
    original, claim = released(kind, norm)
    return pp.verify(suspect, PASSPORT, claim, released=original, example_inputs=EXAMPLE)


def widened(model: nn.Module, share: float = 0.5) -> nn.Module:
    suspect = copy.deepcopy(model)
    assert widen_heads(suspect, share, seeded(2), EXAMPLE)
    return suspect


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", ["alone", "dummies", "noise"])
def test_wider_heads_come_back_below_the_full_disguise(kind: type[nn.Module], more: str) -> None:
    suspect = copy.deepcopy(released(kind)[0])
    if more == "noise":
        noised(suspect, 0.3)
    suspect = widened(suspect)
    if more == "dummies":
        assert add_dummy_neurons(suspect, "split", 0.2, seeded(1), EXAMPLE)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        torch.testing.assert_close(suspect(EXAMPLE), before, atol=1e-3, rtol=1e-3)
    verdict = judged(kind, suspect)
    links = verdict.links
    assert links is not None and links.accepted and "another width" in links.narrowed
    # As much is read as of a copy whose heads are as they were.
    alone = copy.deepcopy(released(kind)[0])
    disguise(alone, seeded(3), example_inputs=EXAMPLE)
    usual = judged(kind, alone).links
    assert usual is not None and links.aligned_total == usual.aligned_total
    least = 0.9 if more == "noise" else 0.98
    assert links.aligned_matched >= least * links.entries_matched


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_with_wider_heads_stays_at_chance(kind: type[nn.Module]) -> None:
    suspect = widened(as_trained(lambda: kinds.Tokens(kind), 7))
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged(kind, suspect).links
    assert links is not None and links.similarity is not None and links.accepted is False
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


NORMS = [nn.LayerNorm, nn.RMSNorm, kinds.LengthNorm, kinds.OnePlusNorm]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("more", ["alone", "heads and dummies", "noise"])
def test_wider_streams_come_back_below_the_full_disguise(norm: type[nn.Module], more: str) -> None:
    original = released(kinds.Attention, norm)[0]
    suspect = copy.deepcopy(original)
    if more == "noise":
        noised(suspect, 0.3)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        if more == "heads and dummies":
            assert widen_heads(suspect, 0.5, seeded(2), EXAMPLE)
            assert add_dummy_neurons(suspect, "clique", 0.2, seeded(1), EXAMPLE)
        assert widen_streams(suspect, 0.3, seeded(4), EXAMPLE) == 29
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        torch.testing.assert_close(suspect(EXAMPLE), before, atol=1e-3, rtol=1e-3)
    links = judged(kinds.Attention, suspect, norm).links
    assert links is not None and links.accepted
    if more == "alone":
        assert "29 left out" in links.narrowed
    least = 0.9 if more == "noise" else 0.98
    assert links.aligned_matched >= least * links.entries_matched


@pytest.mark.parametrize("norm", NORMS)
def test_noise_on_a_wider_stream_hides_no_more_than_on_the_released_one(
    norm: type[nn.Module],
) -> None:
    matched = []
    for wider in (False, True):
        suspect = copy.deepcopy(released(kinds.Attention, norm)[0])
        if wider:
            assert widen_streams(suspect, 0.3, seeded(4), EXAMPLE)
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        links = judged(kinds.Attention, noised(suspect, 0.3), norm).links
        assert links is not None
        matched.append(links.aligned_matched)
    assert matched[1] >= 0.9 * matched[0] > 0.9 * 288 * 0.6


@pytest.mark.parametrize("norm", NORMS)
def test_a_stranger_with_a_wider_stream_stays_at_chance(norm: type[nn.Module]) -> None:
    suspect = as_trained(lambda: kinds.Tokens(kinds.Attention, norm), 7)
    assert widen_streams(suspect, 0.3, seeded(4), EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged(kinds.Attention, suspect, norm).links
    assert links is not None and links.similarity is not None and links.accepted is False
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_numbers_beyond_all_values_lose_nothing_else(number: float) -> None:
    suspect = widened(released(kinds.Attention)[0])
    assert widen_streams(suspect, 0.3, seeded(4), EXAMPLE)
    with torch.no_grad():
        suspect.attention.qkv.weight[3] = number
        suspect.attention.out.weight[:, 5] = number
    links = judged(kinds.Attention, suspect).links
    assert links is not None and links.aligned_total > 0


def test_narrower_heads_are_filled_up() -> None:
    """A copy whose heads were cut down to three quarters, by what their products keep."""
    original = released(kinds.Attention)[0]
    suspect = copy.deepcopy(original)
    attention = suspect.attention
    with torch.no_grad():
        parts = attention.qkv.weight.view(3, kinds.HEADS, kinds.SIZE, -1).double()
        biases = attention.qkv.bias.view(3, kinds.HEADS, kinds.SIZE, 1).double()
        behind = attention.out.weight.view(-1, kinds.HEADS, kinds.SIZE).double()
        kept = 12
        rows, shifts, columns = [], [], []
        for head in range(kinds.HEADS):
            q, k, v = parts[:, head]
            left, strengths, right = torch.linalg.svd(q.T @ k, full_matrices=False)
            root = strengths[:kept, None].sqrt()
            own = root * left[:, :kept].T, root * right[:kept]
            p = behind[:, head]
            outer, sizes, inner = torch.linalg.svd(p @ v, full_matrices=False)
            rows.append(torch.stack([*own, sizes[:kept, None] * inner[:kept]]))
            columns.append(outer[:, :kept])
            pseudo = [torch.linalg.pinv(a) for a in (q, k, v)]
            moved = [r @ b @ s for r, b, s in zip(rows[-1], pseudo, biases[:, head], strict=True)]
            shifts.append(torch.stack(moved))
        weight = torch.stack(rows, 1).flatten(0, 2).float()
        attention.qkv.weight = nn.Parameter(weight)
        attention.qkv.bias = nn.Parameter(torch.stack(shifts, 1).flatten().float())
        attention.out.weight = nn.Parameter(torch.cat(columns, 1).float())
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged(kinds.Attention, suspect).links
    assert links is not None and links.accepted and "another width" in links.narrowed
    assert links.aligned_matched >= 0.85 * links.entries_matched


def test_a_licensee_is_told_by_a_wider_copy() -> None:
    model = as_trained(lambda: kinds.Tokens(kinds.Attention), 0)
    passport = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
    config = pp.PassportConfig.signature(bits=128, shortest_row=32, licence_bits=100)
    pp.passportize(model, passport, config=config, example_inputs=EXAMPLE)
    pp.embed_signature(model)
    claim = claim_of(model)
    take_out_branches(model)
    suspect = copy.deepcopy(model.eval())
    inputs = torch.randn(64, 6, kinds.INPUTS, generator=seeded(5))
    pp.mark_copy(suspect, passport.licensee("licensee 3"), claim, calibration=[inputs])
    assert widen_heads(suspect, 0.5, seeded(2), EXAMPLE)
    assert widen_streams(suspect, 0.3, seeded(4), EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    names = [f"licensee {number}" for number in range(6)]
    found = pp.identify(suspect, passport, names, claim, released=model, example_inputs=EXAMPLE)
    assert found.named == ("licensee 3",)
