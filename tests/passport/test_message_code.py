"""The owner message laid over signature bits, and read back from damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument
from passportize.passport import message_code as owner_message
from passportize.passport.derivation import LabelledStream
from passportize.passport.message_code import lay_over, read_message
from passportize.passport.passport import Passport

SECRET = bytes(range(32))
NAMES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=60)


@pytest.fixture(scope="module")
def passport():
    return Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )


def laid(passport, total):
    """The bits of a model of so many, if its key were the passport's own."""
    keyed = LabelledStream(passport.reading_key)
    return keyed.bits("bits", total=total) ^ lay_over(passport.owner_message, total, keyed)


def decode(passport, bits, confidence=None):
    return read_message(passport.reading_key, bits, confidence)


def with_errors(bits, rate, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return bits ^ (torch.rand(len(bits), generator=generator) < rate).to(torch.int8)


@settings(max_examples=30, deadline=None)
@given(NAMES.filter(str.strip), st.integers(0, 2000), st.binary(min_size=32, max_size=32))
def test_message_reads_back_wherever_it_fits(owner, extra, secret):
    passport = Passport.generate(owner[:20], contact=owner[20:30], date="2026-01-01", secret=secret)
    total = passport.owner_message.frame_bits + extra
    assert passport.message_fits(total)
    assert not passport.message_fits(passport.owner_message.frame_bits - 1)
    assert decode(passport, laid(passport, total)) == passport.owner_message


def test_reading_needs_nothing_but_the_key(passport):
    message = read_message(passport.reading_key, laid(passport, 1500))
    assert (message.owner, message.contact, message.date) == (
        "Acme Vision",
        "legal@acme.example",
        "2026-11-23",
    )


def test_longest_message_reads_back():
    passport = Passport.generate("n" * 200, contact="c" * 51, date="2026-11-28", secret=SECRET)
    assert passport.owner_message.frame_bits == 8 * 261
    assert decode(passport, laid(passport, 2088)) == passport.owner_message


@pytest.mark.parametrize("total", [1, 87, 311])
def test_bits_work_where_the_message_does_not_fit(passport, total):
    assert passport.owner_message.frame_bits == 312
    assert len(laid(passport, total)) == total
    assert decode(passport, laid(passport, total)) is None
    assert not passport.message_fits(total) and passport.message_fits(312)
    # The part that fits is that of a longer codeword.
    assert torch.equal(laid(passport, total), laid(passport, 400)[:total])


@settings(max_examples=20, deadline=None)
@given(st.integers(312, 1200), st.integers(0, 2**20), st.lists(st.integers(0, 3), min_size=1))
def test_independent_decoder_agrees(total, seed, weights):
    passport = Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )
    bits = with_errors(laid(passport, total), 0.02 if seed % 2 else 0.3, seed)
    confidence = [float(weights[j % len(weights)]) for j in range(total)]
    expected = independent.read(passport.reading_key, bits.tolist(), confidence)
    message = decode(passport, bits, confidence)
    assert (message.payload if message else None) == expected


@pytest.mark.parametrize(("rate", "total"), [(0.02, 1984), (0.15, 4800), (0.2, 9600), (0.3, 40000)])
def test_errors_are_voted_down(passport, rate, total):
    for seed in range(5):
        bits = with_errors(laid(passport, total), rate, seed)
        assert decode(passport, bits) == passport.owner_message


@pytest.mark.parametrize("broken", [range(8), range(100, 108), (0, 9, 20, 150, 200, 280, 310, 311)])
def test_eight_weak_frame_bits_may_be_wrong(passport, broken):
    """Wherever they sit: header, payload or checksum. Nine are too many."""
    total = 312 * 3
    bits, confidence = laid(passport, total), torch.ones(total)
    places = torch.tensor(independent.carried(passport.reading_key, 312, total))
    hit = torch.isin(places, torch.tensor(list(broken)))
    bits, confidence = bits ^ hit.to(torch.int8), torch.where(hit, 0.1, 1.0)
    assert decode(passport, bits, confidence) == passport.owner_message
    ninth = places == 160
    assert decode(passport, bits ^ ninth.to(torch.int8), confidence) is None


def test_confidence_reads_what_plain_votes_cannot(passport):
    """Gaussian noise on responses: bits with small responses flip first."""
    total, plain, soft = 4800, 0, 0
    bits = laid(passport, total)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        responses = 1.0 - 2.0 * bits.float() + 1.2 * torch.randn(total, generator=generator)
        read = (responses < 0).to(torch.int8)
        plain += decode(passport, read) is not None
        soft += decode(passport, read, responses.abs()) is not None
    assert soft == 20
    assert plain < 20


def test_lost_layers_cost_nothing_when_marked_as_unread(passport):
    """Half of the positions gone in whole layers of 64 to 512 channels, the rest intact."""
    total = 4800
    bits = laid(passport, total)
    read, confidence = bits.clone(), torch.ones(total)
    for start, width in ((0, 64), (640, 512), (1500, 512), (2600, 512), (3700, 512), (4400, 288)):
        read[start : start + width] = 0
        confidence[start : start + width] = 0
    assert decode(passport, read, confidence) == passport.owner_message


def test_every_window_holds_every_message_bit_alike(passport):
    """The bound of the docstring: m to m + 2 copies of each bit for one m > n / F - 2."""
    message = passport.owner_message
    size, total = message.frame_bits, 4800
    keyed = LabelledStream(passport.reading_key)
    places = torch.tensor(independent.carried(passport.reading_key, size, total))
    bits = torch.tensor(independent.unpack(message.frame, size))
    assert torch.equal(lay_over(message, total, keyed).long(), bits[places])
    for start in range(0, total, 97):
        for width in (64, 312, 700, 2048):
            window = places[start : start + width]
            copies = torch.bincount(window, minlength=size)
            least = max(0, int(copies.max()) - 2)
            assert int(copies.min()) >= least > len(window) / size - 3
            assert int(copies.max()) > len(window) / size - 1e-9


def test_another_key_reads_nothing(passport):
    bits = laid(passport, 4800)
    for index in range(50):
        stranger = Passport.generate("Stranger", date="2026-11-28", secret=bytes([index + 1]) * 32)
        assert decode(stranger, bits) is None


@pytest.mark.parametrize("value", [0, 1])
def test_constant_readings_hold_no_message(passport, value):
    assert decode(passport, torch.full((4800,), value)) is None
    assert decode(passport, torch.full((4800,), value), torch.zeros(4800)) is None


def test_frames_without_a_message_are_uniform(passport):
    """Also where an even number of votes leaves many ties, or nothing was read at all."""
    ones, ties = torch.zeros(88), torch.ones(176)
    for index in range(2000):
        keyed = LabelledStream(index.to_bytes(32, "big"))
        for votes in (ties, 0 * ties):
            ones += decided(keyed, votes)
    assert ((ones - 2000).abs() / 1500**0.5).max() < 4.5


def decided(keyed, votes):
    """Frame bits of 88 positions as the decoder sees them before it turns any."""
    seen = []

    def capture(bits, weights, head):
        seen.append(bits)
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner_message, "_likely_frames", capture)
        read_message(keyed._key, torch.zeros(len(votes)), votes)
    return seen[0].float()


def test_coins_themselves_hold_no_message(passport):
    """Unmasked this is the frame of zeros, the one that a broken read would give."""
    coins = LabelledStream(passport.reading_key).bits("bits", total=4800)
    assert decode(passport, coins) is None


def test_arrays_lists_and_booleans_are_taken(passport):
    bits = laid(passport, 1000)
    for form in (bits.numpy(), bits.tolist(), bits.bool(), bits.numpy().astype(np.float32)):
        assert decode(passport, form) == passport.owner_message
    assert decode(passport, bits, np.ones(1000)) == passport.owner_message


@pytest.mark.parametrize(
    ("bits", "confidence"),
    [
        (torch.zeros(0), None),
        (torch.zeros(2, 8), None),
        (torch.full((8,), 2), None),
        (torch.tensor([0.5] * 8), None),
        (torch.tensor([torch.nan] * 8), None),
        (torch.zeros(8), torch.ones(9)),
        (torch.zeros(8), -torch.ones(8)),
        (torch.zeros(8), torch.full((8,), torch.inf)),
    ],
)
def test_wrong_readings_are_refused(passport, bits, confidence):
    with pytest.raises(InvalidArgument):
        decode(passport, bits, confidence)
