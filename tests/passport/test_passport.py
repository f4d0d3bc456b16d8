from __future__ import annotations

import copy
import pickle
import struct
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chisquare, kstest

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument, MessageTooLong, PassportError
from passportize.passport.commitment import check_commitment
from passportize.passport.derivation import LabelledStream, derive_key, encode_label
from passportize.passport.passport import Passport
from tests.support import ROOT

SECRET = bytes(range(32))
SITE = "layer1.0.bn1"


@pytest.fixture(scope="module")
def passport():
    return Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )


def packed(bits):
    bits = bits.to(torch.int64).reshape(-1, 8)
    return bytes((bits << torch.arange(8)).sum(1).tolist()).hex()


def images():
    gamma = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    return gamma, torch.arange(48, dtype=torch.float32).reshape(3, 4, 4) / 16 - 1


# --- known answers -----------------------------------------------------------------------------


def test_known_answers(passport):
    assert passport.message.hex() == (
        "0b4a670b41636d6520566973696f6e6c6567616c4061636d652e6578616d706c65"
    )
    assert passport.reading_key.hex() == (
        "d90a34f04254ef3432283e6eb1da2999c9ad78a6516a9a1f8bc7c237179a9f44"
    )
    vector = passport.vector(SITE, "gamma", 0, 128)
    assert packed(vector < 0) == "37a6bf84585c85518ea81d7762059655"
    vector = passport.vector(SITE, "beta", 1, 128)
    assert packed(vector < 0) == "01f3745fe233ccd2f1d2d24918860ff7"
    uniform = passport.uniform(SITE, "beta", 0, [2, 2])
    assert (uniform * 2**24).tolist() == [[2616011, -8617181], [16707045, 11653957]]
    assert packed(passport.bits(512)) == (
        "2670c86b08b51f4615408d598eba8befbfcf9b854d0a2234650fc2b983850b2c"
        "caea571868a0e967fdbc26e9ceabc44ad15ba5686cd6a6da1c3e8ea4b74653be"
    )
    assert passport.stream("triggers", 16).hex() == "d37044575d28487ca71f3f248c45f840"
    assert passport.commitment() == (
        "473e9b9d21b19b70bcb4131791f8595c986b365249c9ab0e9b72ab40f11e3bd2"
    )


def test_known_answers_of_an_image_passport(passport):
    pictured = passport.with_images(*images())
    assert pictured.images.digest().hex() == (
        "e872236ba0c6eb5618101bab3de46bd50250903e8cbf346f20d3ac1773653329"
    )
    assert packed(pictured.bits(64)) == "f91704511d5e9fb3"
    assert pictured.commitment() == (
        "1c6ac9a44e91096e7b1a1b3163668699fcc3bc904c7b32901844c72ce0dc7e73"
    )


def test_known_answers_stand_in_the_format_description(passport):
    text = (ROOT / "docs" / "passport_format.md").read_text()
    for value in (
        passport.message.hex(),
        passport.reading_key.hex(),
        packed(passport.vector(SITE, "gamma", 0, 128) < 0),
        struct.pack("<4f", *passport.uniform(SITE, "beta", 0, [4]).tolist()).hex(),
        packed(passport.bits(128)),
        passport.stream("triggers", 16).hex(),
        passport.commitment(),
    ):
        assert value in text


@settings(max_examples=40, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    owner=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20),
    contact=st.text(st.characters(categories=["L", "N", "S"]), max_size=20),
    date=st.dates(),
    site=st.text(st.characters(codec="utf-8"), max_size=20),
    part=st.integers(0, 9),
    length=st.integers(1, 300),
    total=st.integers(1, 900),
)
def test_independent_implementation_agrees(secret, owner, contact, date, site, part, length, total):
    passport = Passport.generate(owner, contact=contact, date=date.isoformat(), secret=secret)
    message = independent.payload(passport.owner, passport.contact, passport.date)
    key = independent.reading_key(secret, message)
    assert (passport.message, passport.reading_key) == (message, key)
    expected = independent.vector(key, site, "gamma", part, length)
    assert passport.vector(site, "gamma", part, length).tolist() == expected
    expected = independent.uniform(key, site, "beta", part, length)
    assert passport.uniform(site, "beta", part, [length]).tolist() == expected
    assert passport.bits(total).tolist() == independent.signature(key, message, total)
    assert passport.stream(site, length) == independent.output(key, length, "stream", site)
    assert passport.commitment() == independent.commitment(secret, message)


def test_independent_implementation_agrees_on_images(passport):
    gamma, beta = images()
    content = struct.pack("<48f", *beta.flatten().tolist())
    digest = independent.images_digest(
        ("gamma", "uint8", (3, 4, 4), bytes(range(48))), ("beta", "float32", (3, 4, 4), content)
    )
    pictured = passport.with_images(gamma, beta)
    key = independent.reading_key(SECRET, passport.message, digest)
    assert pictured.reading_key == key
    assert pictured.commitment() == independent.commitment(SECRET, passport.message, digest)


def test_label_encoding_is_injective():
    labels = [(), ("",), ("", ""), ("a", "b"), ("ab",), ("ab", ""), ("", "ab"), (b"ab",)]
    labels += [(1,), ("1",), (b"\0" * 7 + b"\1",), ("a", 1, "b"), ("a", "1", "b"), (0,), (256,)]
    assert len({encode_label(*label) for label in labels}) == len(labels)
    keys = {derive_key(SECRET, *label) for label in labels}
    assert len(keys) == len(labels)


# --- vectors and numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_vectors_are_exact_in_every_type(passport, dtype):
    vector = passport.vector(SITE, "gamma", 0, 25000)
    assert vector.dtype == torch.float32
    assert torch.equal(vector.abs(), torch.ones(25000))
    assert torch.equal(vector.to(dtype).to(torch.float64), vector.double())


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 1000])
def test_longer_outputs_begin_with_shorter_ones(passport, length):
    assert torch.equal(
        passport.vector(SITE, "beta", 2, length), passport.vector(SITE, "beta", 2, 4608)[:length]
    )
    assert torch.equal(passport.bits(length), passport.bits(4608)[:length])
    assert passport.stream("x", length) == passport.stream("x", 4608)[:length]


def test_every_label_gives_another_vector(passport):
    labels = [
        (site, side, part)
        for site in ("a", "b", "a.b", "")
        for side in ("gamma", "beta")
        for part in (0, 1)
    ]
    vectors = [passport.vector(*label, 4096) for label in labels]
    cosines = torch.stack(vectors) @ torch.stack(vectors).T / 4096
    off_diagonal = cosines - torch.eye(len(labels))
    # Cosines of independent signs have standard deviation 1/64.
    assert off_diagonal.abs().max() < 5 / 64


def test_uniform_numbers_are_uniform_open_and_exact(passport):
    numbers = passport.uniform(SITE, "gamma", 0, (64, 5, 31))
    assert numbers.shape == (64, 5, 31)
    assert numbers.dtype == torch.float32
    assert numbers.abs().max() < 1
    scaled = numbers.double() * 2**24
    assert torch.equal(scaled, scaled.round())
    assert bool((scaled.long() % 2 == 1).all())
    assert kstest(numbers.flatten().numpy(), "uniform", (-1, 2)).pvalue > 1e-4


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.vector(SITE, "delta", 0, 8),
        lambda p: p.vector(SITE, "gamma", -1, 8),
        lambda p: p.vector(SITE, "gamma", 0, 0),
        lambda p: p.vector(SITE, "gamma", 0, 8.0),
        lambda p: p.vector("\ud800", "gamma", 0, 8),
        lambda p: p.uniform(SITE, "alpha", 0, [8]),
        lambda p: p.uniform(SITE, "gamma", 0, [8, 0]),
        lambda p: p.bits(0),
        lambda p: p.bits(True),
        lambda p: p.stream("x", -1),
        lambda p: Passport.generate("x", secret=b"short"),
        lambda p: Passport.generate("x", secret="0" * 32),
        lambda p: Passport.generate(""),
        lambda p: Passport.generate(" \t"),
        lambda p: Passport.generate("line\nbreak"),
        lambda p: Passport.generate("right-to-left \u202e override"),
        lambda p: Passport.generate(None),
        lambda p: Passport.generate("x", contact=1),
        lambda p: Passport.generate("x", date="yesterday"),
        lambda p: Passport.generate("x", date="20261123"),
        lambda p: Passport.generate("x", date="2026-02-30"),
        lambda p: LabelledStream(b"short"),
    ],
)
def test_wrong_arguments_are_refused(passport, call):
    with pytest.raises(InvalidArgument):
        call(passport)


def test_a_message_of_255_bytes_is_the_longest():
    assert len(Passport.generate("é" * 100, contact="c" * 51).message) == 255
    with pytest.raises(MessageTooLong):
        Passport.generate("é" * 100, contact="c" * 52)


def test_secrets_are_drawn_afresh():
    assert Passport.generate("x").commitment() != Passport.generate("x").commitment()


def test_typed_text_is_normalised():
    one = Passport.generate(" Rene\u0301e ", date="2026-01-01", secret=SECRET)
    two = Passport.generate("Ren\u00e9e", date="2026-01-01", secret=SECRET)
    assert one == two
    assert one.owner == "Ren\u00e9e"


# --- bits under the null -------------------------------------------------------------------------


def test_bits_are_fair_coins_whatever_the_message():
    """1,500 keys against one fixed reading: matches are Binomial(n, 1/2), whoever the owner."""
    total, keys = 400, 1500
    torch.manual_seed(0)
    reading = torch.randint(0, 2, (total,))
    matches, per_position = [], torch.zeros(total)
    for index in range(keys):
        secret = index.to_bytes(32, "big")
        bits = Passport.generate("A" * (1 + index % 40), date="2026-01-01", secret=secret).bits(
            total
        )
        agree = bits == reading
        matches.append(int(agree.sum()))
        per_position += agree
    assert binomtest(sum(matches), total * keys).pvalue > 1e-4
    edges = [0, 185, 190, 195, 200, 205, 210, 215, total + 1]
    counts = [sum(low <= m < high for m in matches) for low, high in pairwise(edges)]
    probabilities = [
        binom.cdf(high - 1, total, 0.5) - binom.cdf(low - 1, total, 0.5)
        for low, high in pairwise(edges)
    ]
    assert chisquare(counts, [p * keys for p in probabilities]).pvalue > 1e-4
    # No position is biased: 400 z-scores stay within what 400 fair coins give.
    assert ((per_position - keys / 2).abs() / (keys / 4) ** 0.5).max() < 4.5


def test_no_message_can_be_fitted_to_weights_that_exist_already():
    """With one mask for all messages a forger would choose each position's bit freely.

    Here another message is another key: the best of 300 owners is no better than luck.
    """
    torch.manual_seed(1)
    reading = torch.randint(0, 2, (256,))
    matches = [
        int(
            (
                Passport.generate(f"Mallory {i}", date="2026-01-01", secret=SECRET).bits(256)
                == reading
            ).sum()
        )
        for i in range(300)
    ]
    assert max(matches) < 128 + 5 * 8
    assert abs(sum(matches) / 300 - 128) < 4 * 8 / 300**0.5


def test_images_cannot_be_chosen_for_the_bits(passport):
    gamma, beta = images()
    one = passport.with_images(gamma, beta)
    gamma[0, 0, 0] += 1
    two = passport.with_images(gamma, beta)
    assert 350 < int((one.bits(800) != two.bits(800)).sum()) < 450
    assert 350 < int((one.bits(800) != passport.bits(800)).sum()) < 450


# --- images ------------------------------------------------------------------------------------


def test_image_passports_are_marked_and_keep_their_own_copy(passport):
    gamma, beta = images()
    pictured = passport.with_images(gamma, beta)
    before = pictured.commitment()
    gamma.zero_()
    assert not passport.claimant_chosen
    assert passport.images is None
    assert pictured.claimant_chosen
    assert pictured.images.gamma.sum() == 47 * 24
    assert pictured.with_images(*images()).commitment() == before
    assert pictured.images.as_input("gamma").max() == 47 / 255
    assert torch.equal(pictured.images.as_input("beta"), beta)


@pytest.mark.parametrize(
    "gamma",
    [
        None,
        torch.zeros(3, 4, 4, dtype=torch.float64),
        torch.zeros(0, 4, 4),
        torch.full((3, 4, 4), torch.nan),
        torch.zeros(1, dtype=torch.uint8).expand(2**26 + 1),
    ],
)
def test_unfit_images_are_refused(passport, gamma):
    with pytest.raises(InvalidArgument):
        passport.with_images(gamma, torch.zeros(3, 4, 4))


# --- commitment ----------------------------------------------------------------------------------


def test_commitment_opens_and_only_so(passport):
    opening = passport.opening()
    assert check_commitment(passport.commitment(), opening)
    assert passport.check_commitment(passport.commitment().upper() + "\n")
    assert not passport.check_commitment("é")
    changes = {
        "secret": "00" * 32,
        "salt": "00" * 32,
        "owner": "Acme Vision2",
        "contact": "",
        "date": "2026-11-22",
        "images_sha256": "00" * 32,
    }
    for name, value in changes.items():
        assert not check_commitment(passport.commitment(), {**opening, name: value})


def test_owner_and_contact_cannot_be_shifted_into_each_other():
    one = Passport.generate("ab", contact="c", date="2026-01-01", secret=SECRET)
    two = Passport.generate("a", contact="bc", date="2026-01-01", secret=SECRET)
    assert one != two


def test_image_passports_open_too(passport):
    pictured = passport.with_images(*images())
    assert check_commitment(pictured.commitment(), pictured.opening())
    assert not check_commitment(passport.commitment(), pictured.opening())


@pytest.mark.parametrize(
    "change",
    [
        {"secret": "zz"},
        {"secret": SECRET.hex()[:-2]},
        {"images_sha256": "00"},
        {"format": "other"},
        {"owner": None},
        {"date": "1"},
    ],
)
def test_malformed_openings_are_refused_without_quoting_them(passport, change):
    with pytest.raises(InvalidArgument) as caught:
        check_commitment(passport.commitment(), {**passport.opening(), **change})
    assert SECRET.hex()[:12] not in str(caught.value)


def test_commitments_are_text(passport):
    with pytest.raises(InvalidArgument):
        passport.check_commitment(None)


# --- a value that keeps its secret -----------------------------------------------------------


def test_nothing_shows_the_secret(passport):
    for text in (repr(passport), str(passport), f"{passport}", repr(passport._keyed)):
        assert SECRET.hex()[:8] not in text
        assert passport.reading_key.hex()[:8] not in text
        assert repr(SECRET)[2:10] not in text
    assert not hasattr(passport, "__dict__")
    assert "Acme Vision" in repr(passport)
    assert passport.commitment()[:12] in repr(passport)


def test_pickling_is_refused(passport):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(PassportError, match=r"save"):
            pickle.dumps(passport, protocol)


def test_torch_save_is_refused(passport, tmp_path):
    with pytest.raises(PassportError):
        torch.save({"passport": passport}, tmp_path / "model.pth")


def test_copies_are_the_same_object(passport):
    assert copy.copy(passport) is passport
    assert copy.deepcopy({"p": passport})["p"] is passport


def test_passports_are_immutable(passport):
    with pytest.raises(PassportError):
        passport._secret = bytes(32)
    with pytest.raises(PassportError):
        passport.colour = "blue"
    with pytest.raises(PassportError):
        del passport._message


def test_equality_and_hash(passport):
    same = Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )
    other = Passport.generate("Acme Vision", date="2026-11-23", secret=SECRET)
    assert same == passport
    assert hash(same) == hash(passport)
    assert other != passport
    assert passport != "passport"
    assert len({passport, same, other}) == 2
