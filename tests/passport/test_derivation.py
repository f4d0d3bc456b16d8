"""Labelled derivation against hashlib and hmac, byte by byte."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, kstest

from passportize.errors import InvalidArgument
from passportize.passport.derivation import LabelledStream, bits_of, derive_key, encode_label

KEY = bytes(range(32))


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def output(length: int, *label: str | int | bytes) -> bytes:
    return hashlib.shake_256(derive_key(KEY, *label)).digest(length)


def test_a_label_is_written_with_type_and_length() -> None:
    assert encode_label() == b""
    assert encode_label("é") == b"s" + number(2) + b"\xc3\xa9"
    assert encode_label(b"\0ab") == b"b" + number(3) + b"\0ab"
    assert encode_label(258) == b"i" + number(8) + number(258)
    assert encode_label("a", 0, b"") == (
        b"s" + number(1) + b"a" + b"i" + number(8) + number(0) + b"b" + number(0)
    )


@pytest.mark.parametrize("value", [0, 2**64 - 1])
def test_the_outermost_integers_have_a_label(value: int) -> None:
    assert encode_label(value)[9:] == number(value)


@pytest.mark.parametrize(
    ("part", "message"),
    [(-1, "holds the integer -1"), (2**64, "2\\*\\*64 - 1"), ("\ud800", "not valid Unicode")],
)
def test_labels_that_could_not_be_told_apart_are_refused(part: str | int, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        encode_label(part)


def test_keys_are_those_of_rfc_5869() -> None:
    extracted = hmac.new(b"passportize/passport/v1", KEY, hashlib.sha256).digest()
    label = b"s" + number(1) + b"x" + b"i" + number(8) + number(7)
    expected = hmac.new(extracted, label + b"\x01", hashlib.sha256).digest()
    assert derive_key(KEY, "x", 7) == expected


def test_the_lowest_bit_of_a_byte_comes_first() -> None:
    bits = bits_of(b"\x01\x80\xd2")
    assert bits.dtype == torch.int8
    assert bits.tolist() == [1, *[0] * 7, *[0] * 7, 1, 0, 1, 0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("total", [1, 7, 8, 9, 16, 17])
def test_bits_and_signs_are_those_of_the_stream(total: int) -> None:
    keyed = LabelledStream(KEY)
    raw = output(3, "a", 1)
    expected = [raw[place // 8] >> place % 8 & 1 for place in range(total)]
    bits, signs = keyed.bits("a", 1, total=total), keyed.signs("a", 1, length=total)
    assert bits.dtype == torch.int8 and bits.tolist() == expected
    assert signs.dtype == torch.float32 and signs.tolist() == [1 - 2 * bit for bit in expected]


def test_uniform_numbers_are_odd_multiples_of_a_unit() -> None:
    raw = output(18, "u")
    numbers = [int.from_bytes(raw[place : place + 3], "little") for place in range(0, 18, 3)]
    expected = [[(2 * k + 1) / 2**24 - 1 for k in row] for row in (numbers[:3], numbers[3:])]
    uniform = LabelledStream(KEY).uniform("u", shape=(2, 3))
    assert uniform.dtype == torch.float32 and uniform.tolist() == expected


def test_words_have_their_lowest_byte_first() -> None:
    raw = output(400, "w")
    expected = [int.from_bytes(raw[place : place + 4], "little") for place in range(0, 400, 4)]
    words = LabelledStream(KEY).words("w", count=100)
    assert words.dtype == torch.int64 and words.tolist() == expected
    assert max(expected) >= 2**31  # unsigned


def test_streams_may_be_empty_and_nothing_else() -> None:
    keyed = LabelledStream(KEY)
    assert keyed.stream("s", length=0) == b"" and keyed.stream("s", length=5) == output(5, "s")
    assert len(keyed.bits("b", total=1)) == len(keyed.words("w", count=1)) == 1
    assert keyed.uniform("u", shape=(1,)).shape == (1,)
    for call in (
        lambda: keyed.stream("s", length=-1),
        lambda: keyed.stream("s", length=1.0),
        lambda: keyed.stream("s", length=True),
        lambda: keyed.bits("b", total=0),
        lambda: keyed.signs("b", length=0),
        lambda: keyed.words("w", count=0),
        lambda: keyed.uniform("u", shape=(2, 0)),
    ):
        with pytest.raises(InvalidArgument, match=r"must be an integer|every size in shape"):
            call()


@pytest.mark.parametrize("key", [KEY[:31], KEY + b"\0", bytearray(KEY), "0" * 32])
def test_a_key_is_32_bytes(key: object) -> None:
    with pytest.raises(InvalidArgument, match="a key is 32 bytes"):
        LabelledStream(key)


def test_nothing_shows_the_key() -> None:
    keyed = LabelledStream(KEY)
    assert repr(keyed) == str(keyed) == "LabelledStream(key hidden)"
    assert not hasattr(keyed, "__dict__")


def test_label_encoding_is_injective():
    labels = [(), ("",), ("", ""), ("a", "b"), ("ab",), ("ab", ""), ("", "ab"), (b"ab",)]
    labels += [(1,), ("1",), (b"\0" * 7 + b"\1",), ("a", 1, "b"), ("a", "1", "b"), (0,), (256,)]
    assert len({encode_label(*label) for label in labels}) == len(labels)
    keys = {derive_key(KEY, *label) for label in labels}
    assert len(keys) == len(labels)


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 1000])
def test_longer_outputs_begin_with_shorter_ones(length: int) -> None:
    keyed = LabelledStream(KEY)
    assert keyed.stream("x", length=length) == keyed.stream("x", length=4608)[:length]
    for draw in (
        lambda count: keyed.bits("x", total=count),
        lambda count: keyed.signs("x", length=count),
        lambda count: keyed.words("x", count=count),
        lambda count: keyed.uniform("x", shape=(count,)),
    ):
        assert torch.equal(draw(length), draw(4608)[:length])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_signs_are_exact_in_every_type(dtype: torch.dtype) -> None:
    signs = LabelledStream(KEY).signs("s", length=25000)
    assert torch.equal(signs.abs(), torch.ones(25000))
    assert torch.equal(signs.to(dtype).to(torch.float64), signs.double())


def test_every_label_and_key_gives_another_stream() -> None:
    labels = [
        (key, (site, side, part))
        for key in (KEY, KEY[::-1])
        for site in ("a", "b", "a.b", "")
        for side in ("gamma", "beta")
        for part in (0, 1)
    ]
    signs = torch.stack([LabelledStream(key).signs(*label, length=4096) for key, label in labels])
    off_diagonal = signs @ signs.T / 4096 - torch.eye(len(labels))
    # Cosines of independent signs have standard deviation 1/64.
    assert off_diagonal.abs().max() < 5 / 64


def test_uniform_numbers_are_uniform_open_and_exact() -> None:
    numbers = LabelledStream(KEY).uniform("u", shape=(64, 5, 31))
    assert numbers.shape == (64, 5, 31)
    assert numbers.dtype == torch.float32
    assert numbers.abs().max() < 1
    scaled = numbers.double() * 2**24
    assert torch.equal(scaled, scaled.round())
    assert bool((scaled.long() % 2 == 1).all())
    assert kstest(numbers.flatten().numpy(), "uniform", (-1, 2)).pvalue > 1e-4


def test_words_and_bits_are_uniform() -> None:
    keyed = LabelledStream(KEY)
    words = keyed.words("w", count=40_000).numpy()
    assert kstest(words / 2**32, "uniform").pvalue > 1e-4
    assert chisquare(np.bincount(words % 256, minlength=256)).pvalue > 1e-4
    assert binomtest(int(keyed.bits("b", total=100_000).sum()), 100_000).pvalue > 1e-4


def test_a_stream_is_longer_than_any_layer_takes() -> None:
    keyed = LabelledStream(KEY)
    assert hashlib.sha256(keyed.stream("long", length=3_000_001)).hexdigest() == (
        hashlib.sha256(output(3_000_001, "long")).hexdigest()
    )
