"""Bits go into fresh rows by signs alone, and the signs that come out are fair coins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passportize.passport.derivation import LabelledStream
from passportize.signature.flipped_signs import flipped_rows
from passportize.signature.response import normalised_responses, reach_of
from passportize.signature.vectors import SignVectors, draw_sign_vectors


def drawn(rows: int, entries: int, seed: int = 0) -> tuple[Tensor, SignVectors, Tensor]:
    """Fresh rows, vectors of a key and bits."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, entries, generator=generator, dtype=torch.float64)
    vectors = draw_sign_vectors(LabelledStream(bytes([seed]) * 32), "norm", 0, rows, entries)
    bits = torch.randint(0, 2, (rows,), generator=generator).double() * 2 - 1
    return weights, vectors, bits


def flipped(rows: Tensor, vectors: SignVectors, bits: Tensor, margin: float = 2.0) -> Tensor:
    found = flipped_rows(rows, vectors, bits, margin)
    assert found is not None
    return found


@pytest.mark.parametrize("entries", [27, 64, 144, 255, 256])
def test_bits_are_in_with_their_margin_and_sizes_stay(entries: int) -> None:
    rows, vectors, bits = drawn(400, entries)
    marked = flipped(rows, vectors, bits)
    assert torch.equal(marked.abs(), rows.abs())
    answers = normalised_responses([marked], [vectors])
    assert ((answers.gamma >= 0) == (bits > 0)).double().mean() > 0.99
    if entries >= 144:  # shorter ones may lack a part of it
        reach = reach_of(2.0, entries)
        assert float((bits * answers.gamma).min()) >= reach
        assert float(answers.gauge.abs().min()) >= reach


def test_no_more_is_changed_than_has_to_be() -> None:
    rows, vectors, bits = drawn(200, 256)
    marked = flipped(rows, vectors, bits)
    answers = normalised_responses([marked], [vectors])
    nearest = torch.minimum(answers.gauge.abs(), bits * answers.gamma)
    assert float(nearest.quantile(0.9)) < 2.4
    assert flipped_rows(marked, vectors, bits, 2.0) is None
    assert flipped_rows(torch.zeros_like(rows), vectors, bits, 2.0) is None


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 256), st.integers(0, 200), st.floats(0.1, 3.0))
def test_what_is_changed_says_nothing_of_the_key(entries: int, seed: int, margin: float) -> None:
    """With other signs of ``s`` and of the row, the same entries change.

    ``s`` is uniform and independent of all that decides, so the signs that come out are, too.
    """
    rows, vectors, bits = drawn(20, entries, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    other = torch.randint(0, 2, rows.shape, dtype=torch.uint8, generator=generator)
    # Bits 0 and 1 of a code are the signs of s and t; the mask s t stays.
    second = SignVectors(vectors.codes ^ (other * 3))
    turned = rows * (1 - 2 * other.double())
    first = flipped_rows(rows, vectors, bits, margin)
    again = flipped_rows(turned, second, bits, margin)
    assert (first is None) == (again is None)
    if first is not None and again is not None:
        assert torch.equal(first != rows, again != turned)


def test_signs_are_coins_for_those_who_do_not_know_the_key() -> None:
    """Over many keys and one fixed row no entry, and no pair of entries, leans to a side."""
    sizes = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    count = 4000
    _, vectors, bits = drawn(count, 64, seed=5)
    fresh = torch.randint(0, 2, (count, 64), generator=torch.Generator().manual_seed(2))
    marked = flipped(sizes * (1 - 2 * fresh.double()), vectors, bits).sign()
    assert float(marked.mean(0).abs().max()) < 5 / count**0.5
    pairs = (marked.t() @ marked / count).fill_diagonal_(0)
    assert float(pairs.abs().max()) < 5.5 / count**0.5
