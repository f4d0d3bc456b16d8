"""Vectors of each row's own: against an independent calculation, and that nothing is in common."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import tests.support.independent_passport as independent
from passportize.errors import PassportLocked
from passportize.passport.derivation import LabelledStream
from passportize.signature.vectors import (
    RANDOM_PASSPORT_POSITIONS,
    WINDOW,
    SecretVectors,
    SignVectors,
    draw_raw_vectors,
    draw_sign_vectors,
)

KEY = bytes(range(32))


def drawn(channels: int, fan_in: int, key: bytes = KEY, site: str = "bn1", part: int = 0):
    return draw_sign_vectors(LabelledStream(key), site, part, channels, fan_in)


@settings(max_examples=40, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    site=st.text(st.characters(codec="utf-8"), max_size=12),
    part=st.integers(0, 9),
    channels=st.integers(1, 9),
    fan_in=st.one_of(st.integers(1, 40), st.integers(250, 600)),
)
def test_they_are_those_of_the_format(key, site, part, channels, fan_in) -> None:
    ours = drawn(channels, fan_in, key, site, part)
    offset, rows = independent.sign_vectors(key, site, part, channels, fan_in)
    assert ours.offset == offset
    # [channels, 3, entries] from lists of three.
    assert torch.equal(ours.signs(torch.float64).movedim(0, 1).int(), torch.tensor(rows))


def test_codes_hold_the_three_signs_in_their_lowest_bits() -> None:
    codes = torch.arange(8, dtype=torch.uint8).reshape(2, 4)
    s, t, r = SignVectors(codes).signs(torch.float32)
    assert s.flatten().tolist() == [1, -1] * 4
    assert t.flatten().tolist() == [1, 1, -1, -1] * 2
    assert r.flatten().tolist() == [1] * 4 + [-1] * 4
    ours = drawn(5, 30)
    assert ours.codes.dtype == torch.uint8 and int(ours.codes.max()) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_are_exact_in_every_type(dtype: torch.dtype) -> None:
    signs = drawn(64, 300).signs(dtype)
    assert signs.dtype == dtype
    assert torch.equal(signs.abs(), torch.ones_like(signs))


@pytest.mark.parametrize("fan_in", [1, 2, 3, 8, 9, 27, 64, 255, 256, 257, 4608])
def test_t_differs_from_s_in_exactly_half(fan_in: int) -> None:
    s, t, _ = drawn(50, fan_in).signs(torch.float64)
    entries = min(fan_in, WINDOW)
    assert (s != t).sum(1).tolist() == [entries // 2] * 50
    assert (s * t).sum(1).tolist() == [entries % 2] * 50


def test_of_equal_words_the_later_entry_is_the_larger() -> None:
    class Equal(LabelledStream):
        def stream(self, *label, length):
            return b"\xff" * length

    s, t, _ = draw_sign_vectors(Equal(KEY), "bn1", 0, 3, 9).signs(torch.float64)
    assert ((s != t).int() == torch.tensor([0] * 5 + [1] * 4)).all()


def test_words_are_compared_without_sign_and_rounding() -> None:
    words = (2**32 - 1, 2**31, 2**32 - 2, 0)

    class Close(LabelledStream):
        def stream(self, *label, length):
            return b"".join(word.to_bytes(4, "little") for word in words)[:length] * 2

    s, t, _ = draw_sign_vectors(Close(KEY), "bn1", 0, 2, 4).signs(torch.float64)
    assert ((s != t).int() == torch.tensor([1, 0, 1, 0])).all()


@pytest.mark.parametrize("entries", [1, 2, 9, 10, 256])
def test_the_larger_half_is_that_of_sorting(entries: int) -> None:
    """Few different numbers, so that nearly every row has equal ones in its middle."""

    class Few(LabelledStream):
        def stream(self, *label, length):
            return bytes(byte & 3 for byte in super().stream(*label, length=length))

    keyed = Few(KEY)
    s, t, _ = draw_sign_vectors(keyed, "bn1", 0, 40, entries).signs(torch.float64)
    raw = keyed.stream("mask", "bn1", 0, length=160 * entries)
    for row in range(40):
        words = [
            int.from_bytes(raw[4 * i : 4 * i + 4], "little")
            for i in range(row * entries, (row + 1) * entries)
        ]
        order = sorted(range(entries), key=lambda place, words=words: (words[place], place))
        larger = set(order[(entries + 1) // 2 :])
        assert set((s != t)[row].nonzero().flatten().tolist()) == larger


@pytest.mark.parametrize("entries", [4, 5, 6])
def test_every_half_is_as_likely(entries: int) -> None:
    """Masks are uniform over all halves, and over the rows of a layer alike."""
    s, t, _ = drawn(30_000, entries).signs(torch.int8)
    numbers = ((s != t).int() * 2 ** torch.arange(entries)).sum(1).numpy()
    halves = {
        sum(2**place for place in half)
        for half in itertools.combinations(range(entries), entries // 2)
    }
    values, counts = np.unique(numbers, return_counts=True)
    assert set(values.tolist()) == halves
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("fan_in", [9, 64, 256])
def test_entries_of_masks_and_signs_are_fair(fan_in: int) -> None:
    s, t, r = drawn(4000, fan_in).signs(torch.float64)
    share = (fan_in // 2) / fan_in
    changed = (s != t).double().sum(0).numpy()
    scores = (changed - 4000 * share) / math.sqrt(4000 * share * (1 - share))
    # Of one row a fixed number is changed, so the sum of squares is that of one degree less.
    size = float((scores**2).sum()) * (fan_in - 1) / fan_in
    assert 1e-4 < stats.chi2(fan_in - 1).cdf(size) < 1 - 1e-4
    for signs in (s, t, r):
        assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-4
        assert float(signs.sum(0).abs().max()) < 5 * math.sqrt(4000)


def test_nothing_is_shared_between_rows_parts_sites_and_keys() -> None:
    """All pairs of vectors: the largest of their cosines is that of independent signs."""
    cases = [
        (KEY, "bn1", 0),
        (KEY, "bn1", 1),
        (KEY, "bn2", 0),
        (KEY[::-1], "bn1", 0),
    ]
    vectors = torch.cat(
        [drawn(60, 256, *case).signs(torch.float64).movedim(0, 1).flatten(0, 1) for case in cases]
    )
    cosines = vectors @ vectors.T / 256
    cosines.fill_diagonal_(0)
    pairs = len(vectors) * (len(vectors) - 1) / 2
    # Of independent signs; where s and t belong to one row it is 0.
    assert float(cosines.abs().max()) < stats.norm.isf(1e-4 / (2 * pairs)) / 16
    squares = float((cosines * 16).square().sum()) / 2
    free = pairs - len(vectors) / 3  # those of s and t of one row are 0
    assert abs(squares / free - 1) < 4 * math.sqrt(2 / free)


def test_masks_of_different_rows_have_nothing_in_common() -> None:
    s, t, _ = drawn(200, 256).signs(torch.float64)
    masks = s * t
    cosines = masks @ masks.T / 256
    cosines.fill_diagonal_(0)
    assert float(cosines.abs().max()) < stats.norm.isf(1e-4 / 2e4 / 2) / 16


def test_no_direction_is_left_in_many_rows() -> None:
    """The second moment of a layer's vectors has no eigenvalue beyond those of independent rows."""
    channels, entries = 2048, 256
    for vectors in drawn(channels, entries).signs(torch.float64):
        largest = float(torch.linalg.eigvalsh(vectors.T @ vectors / channels)[-1])
        # Marchenko and Pastur's edge.
        assert largest < (1 + math.sqrt(entries / channels)) ** 2 * 1.1


def test_windows_lie_anywhere_and_never_outside() -> None:
    offsets = [drawn(1, 300, site=f"bn{index}").offset for index in range(2000)]
    assert min(offsets) == 0 and max(offsets) == 300 - WINDOW
    assert stats.chisquare(np.bincount(offsets, minlength=45)).pvalue > 1e-4
    for fan_in in (1, 255, 256):
        assert drawn(2, fan_in).window == slice(0, fan_in)


def test_raw_vectors_are_uniform_and_scaled_as_mean_patches() -> None:
    raw = draw_raw_vectors(LabelledStream(KEY), "bn1", 2, 5000)
    sides = [independent.uniform(KEY, "bn1", side, 2, 5000) for side in ("gamma", "beta")]
    assert RANDOM_PASSPORT_POSITIONS == 256
    expected = torch.tensor(sides, dtype=torch.float64).T / 16
    assert raw.values.dtype == torch.float32 and torch.equal(raw.values.double(), expected)
    assert raw.window is None and raw.entries == 5000
    for side in sides:
        assert stats.kstest(side, "uniform", (-1, 2)).pvalue > 1e-4


# --- what a live model holds ---------------------------------------------------------------------


def secret() -> SecretVectors:
    return SecretVectors((drawn(4, 9),), torch.tensor([1.0, -1.0, 1.0, 1.0]))


def test_a_pickled_secret_is_empty_and_a_copy_shares_it() -> None:
    held = secret()
    assert copy.deepcopy({"a": held})["a"] is held
    opened = pickle.loads(pickle.dumps(held))
    assert opened.locked and opened.sides == ()
    with pytest.raises(PassportLocked, match="unlock"):
        _ = opened.bits
    assert repr(held) == "SecretVectors(hidden)" and repr(opened) == "SecretVectors(locked)"
    assert opened.to(torch.device("meta")) is opened


def test_a_stay_on_the_meta_device_loses_nothing() -> None:
    held = secret()
    away = held.to(torch.device("meta"))
    assert away.bits.is_meta and away.sides[0].codes.is_meta and away.sides[0].window == slice(0, 9)
    back = away.to(torch.device("cpu"))
    assert torch.equal(back.bits, held.bits)
    assert torch.equal(back.sides[0].codes, held.sides[0].codes)
    assert held.to(torch.device("cpu")) is held
