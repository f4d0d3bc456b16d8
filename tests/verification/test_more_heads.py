"""Heads of attention that were added come out again, whatever a thief makes them of."""

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
from passportize.release.claim import Claim
from passportize.utils.resized import put_tensor
from tests.attacks.test_wider_heads import small_vit
from tests.support import looked_through as kinds
from tests.support.small_protected import PASSPORT
from tests.support.widths import EXAMPLE, as_trained, marked, noised, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


@functools.cache
def released() -> tuple[nn.Module, Claim]:
    return marked(small_vit)


def judged(suspect: nn.Module) -> pp.Verdict:
    original, claim = released()
    return pp.verify(suspect, PASSPORT, claim, released=original, example_inputs=EXAMPLE)


@torch.no_grad()
def more_heads(model: nn.Module, kind: str) -> nn.Module:
    """A copy with heads in front of those of every attention; no output changes."""
    suspect = copy.deepcopy(model)
    generator = seeded(4)
    for number, block in enumerate(suspect.blocks):
        attention = block.attn
        heads, width = attention.num_heads, attention.head_dim
        weight = attention.qkv.weight.view(3, heads, width, -1)
        bias = attention.qkv.bias.view(3, heads, width)
        behind = attention.proj.weight.view(-1, heads, width).clone()

        def like(part: torch.Tensor) -> torch.Tensor:
            return torch.randn(part.shape, generator=generator) * part.std()

        if kind == "not read":
            rows, shifts = like(weight[:, :1]), like(bias[:, :1])
            columns = torch.zeros_like(behind[:, :1])
        elif kind == "cancelling":
            rows = like(weight[:, :1]).expand(-1, 2, -1, -1)
            shifts = like(bias[:, :1]).expand(-1, 2, -1)
            half = like(behind[:, :1])
            columns = torch.cat([half, -half], 1)
        else:  # every head twice
            rows, shifts, columns = weight, bias, 0.3 * behind
            behind = 0.7 * behind
        more = rows.shape[1]
        name = f"blocks.{number}.attn"
        put_tensor(suspect, f"{name}.qkv.weight", torch.cat([rows, weight], 1).flatten(0, 2))
        put_tensor(suspect, f"{name}.qkv.bias", torch.cat([shifts, bias], 1).flatten())
        put_tensor(suspect, f"{name}.proj.weight", torch.cat([columns, behind], 1).flatten(1))
        attention.num_heads, attention.attn_dim = heads + more, (heads + more) * width
    return suspect.eval()


KINDS = ["not read", "cancelling", "split"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", ["alone", "dummies", "wider heads and stream", "noise"])
def test_they_are_taken_out_below_the_full_disguise(kind: str, more: str) -> None:
    suspect = noised(copy.deepcopy(released()[0]), 0.3 if more == "noise" else 0.0)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        suspect = more_heads(suspect, kind)
        if more == "dummies":
            assert add_dummy_neurons(suspect, "clique", 0.2, seeded(1), EXAMPLE)
        if more == "wider heads and stream":
            assert widen_heads(suspect, 0.25, seeded(2), EXAMPLE)
            assert widen_streams(suspect, 0.3, seeded(6), EXAMPLE)
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        largest = float(before.abs().max())
        assert float((suspect(EXAMPLE) - before).abs().max()) < 1e-4 * largest
    links = judged(suspect).links
    assert links is not None and links.accepted and "another width or number" in links.narrowed
    least = {"alone": 0.98, "noise": 0.9}.get(more, 0.95)
    assert links.aligned_matched >= least * links.entries_matched


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_with_more_heads_stays_at_chance(kind: str) -> None:
    suspect = more_heads(as_trained(small_vit, 7), kind)
    links = judged(suspect).links
    assert links is not None and links.similarity is not None and links.accepted is False
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


@pytest.mark.parametrize("kind", KINDS)
def test_noise_on_heads_that_were_added(kind: str) -> None:
    """No exact copies, and nothing is exactly nothing; compared with the same without them."""
    matched = []
    for suspect in (copy.deepcopy(released()[0]), more_heads(released()[0], kind)):
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        links = judged(noised(suspect, 0.05)).links
        assert links is not None
        matched.append(links.aligned_matched)
    assert matched[1] >= 0.9 * matched[0]


TOKENS = torch.randn(2, 6, kinds.INPUTS, generator=seeded())


@functools.cache
def sharing(kind: type[nn.Module]) -> tuple[nn.Module, Claim]:
    return marked(lambda: kinds.Tokens(kind), TOKENS)


@torch.no_grad()
def more_shared_heads(model: nn.Module, kind: str) -> nn.Module:
    """A copy with keys and values more, and two heads of queries for each."""
    suspect = copy.deepcopy(model)
    attention = suspect.attention
    generator = seeded(4)
    for name, rows in (("q", 2 * kinds.SIZE), ("k", kinds.SIZE), ("v", kinds.SIZE)):
        for key in ("weight", "bias"):
            own = getattr(getattr(attention, name), key)
            new = own[:rows].clone()
            if kind == "not read":
                new = torch.randn(new.shape, generator=generator) * own.std()
            put_tensor(suspect, f"attention.{name}.{key}", torch.cat([own, new]))
    columns = attention.out.weight.clone()
    new = torch.zeros_like(columns[:, : 2 * kinds.SIZE])
    if kind == "split":
        new = 0.3 * columns[:, : 2 * kinds.SIZE]
        columns[:, : 2 * kinds.SIZE] *= 0.7
    put_tensor(suspect, "attention.out.weight", torch.cat([columns, new], 1))
    return suspect.eval()


@pytest.mark.parametrize("attention", [kinds.SharedKeys, kinds.SharedKeysTurned])
@pytest.mark.parametrize("kind", ["not read", "split"])
def test_heads_that_share_keys_are_taken_out(attention: type[nn.Module], kind: str) -> None:
    original, claim = sharing(attention)
    suspect = more_shared_heads(original, kind)
    disguise(suspect, seeded(3), example_inputs=TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(suspect(TOKENS), original(TOKENS), atol=1e-4, rtol=1e-4)
    links = pp.verify(suspect, PASSPORT, claim, released=original, example_inputs=TOKENS).links
    assert links is not None and links.accepted and "another width or number" in links.narrowed
    assert links.aligned_matched >= 0.98 * links.entries_matched
