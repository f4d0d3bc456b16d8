from __future__ import annotations

import copy
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument, MessageTooLong, PassportError
from passportize.passport.derivation import LabelledStream
from passportize.passport.passport import Passport
from tests.support import ROOT

SECRET = bytes(range(32))
SITE = "layer1.0.bn1"


@pytest.fixture(scope="module")
def passport():
    return Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )


def images():
    gamma = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    return gamma, torch.arange(48, dtype=torch.float32).reshape(3, 4, 4) / 16 - 1


# --- what is derived from the secret --------------------------------------------------------------


def test_known_answers(passport):
    assert passport.message.hex() == (
        "0b4a670b41636d6520566973696f6e6c6567616c4061636d652e6578616d706c65"
    )
    assert passport.reading_key.hex() == (
        "d90a34f04254ef3432283e6eb1da2999c9ad78a6516a9a1f8bc7c237179a9f44"
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
    assert pictured.commitment() == (
        "1c6ac9a44e91096e7b1a1b3163668699fcc3bc904c7b32901844c72ce0dc7e73"
    )


def test_known_answers_stand_in_the_format_description(passport):
    text = (ROOT / "docs" / "passport_format.md").read_text()
    for value in (
        passport.message.hex(),
        passport.reading_key.hex(),
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
    label=st.text(st.characters(codec="utf-8"), max_size=20),
    length=st.integers(0, 300),
)
def test_independent_implementation_agrees(secret, owner, contact, date, label, length):
    passport = Passport.generate(owner, contact=contact, date=date.isoformat(), secret=secret)
    message = independent.payload(passport.owner, passport.contact, passport.date)
    key = independent.reading_key(secret, message)
    assert (passport.message, passport.reading_key) == (message, key)
    assert passport.stream(label, length) == independent.output(key, length, "stream", label)
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


def test_another_secret_message_or_picture_is_another_key(passport):
    gamma, beta = images()
    changed = gamma.clone()
    changed[0, 0, 0] += 1
    described = {"contact": "legal@acme.example", "date": "2026-11-23", "secret": SECRET}
    passports = [
        passport,
        Passport.generate("Acme Vision", **{**described, "secret": bytes(32)}),
        Passport.generate("Acme Visions", **described),
        Passport.generate("Acme Vision", **{**described, "contact": ""}),
        Passport.generate("Acme Vision", **{**described, "date": "2026-11-24"}),
        passport.with_images(gamma, beta),
        passport.with_images(changed, beta),
        passport.with_images(gamma, -beta),
        passport.with_images(beta, beta),
    ]
    assert len({each.reading_key for each in passports}) == len(passports)
    assert len({each.commitment() for each in passports}) == len(passports)


def test_longer_streams_begin_with_shorter_ones(passport):
    assert passport.stream("x", 9) == passport.stream("x", 4608)[:9]
    assert passport.stream("x", 9) != passport.stream("y", 9)


def test_the_message_takes_its_frame(passport):
    assert passport.owner_message.frame_bits == 312
    assert passport.message_fits(312) and not passport.message_fits(311)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.stream("x", -1),
        lambda p: p.stream("x", 8.0),
        lambda p: p.stream("x", True),
        lambda p: p.stream("\ud800", 8),
        lambda p: Passport.generate("x", date="2026-11-28", secret=b"short"),
        lambda p: Passport.generate("x", date="2026-11-28", secret="0" * 32),
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
