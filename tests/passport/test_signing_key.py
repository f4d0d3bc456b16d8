"""The owner's signing key: known answers, another implementation, and one key per passport."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.independent_ed25519 as ed25519
import tests.support.independent_passport as independent
from passportize.passport.passport import Passport
from passportize.passport.signing_key import is_signed
from tests.support import ROOT

SECRET = bytes(range(32))
PASSPORT = Passport.generate(
    "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
)
PUBLIC_KEY = "ad659077848d89560a42b3225ff13fe7dfae7d2fa6b388a254e5d039ed869212"


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_vectors_of_rfc_8032(seed, public, message, signature):
    """The tests' own implementation, against which the library's is held below."""
    public, message, signature = (bytes.fromhex(text) for text in (public, message, signature))
    assert ed25519.public_key(bytes.fromhex(seed)) == public
    assert ed25519.verify(public, signature, message) and is_signed(public, signature, message)
    assert not ed25519.verify(public, signature, message + b"x")


def test_known_answers():
    assert PASSPORT.public_key().hex() == PUBLIC_KEY
    assert PASSPORT.sign(b"").hex() == (
        "39e172577b0fa8e05928de2daf09db87f8b952e34299954e077246326c0186b1"
        "2434f19cf5c11d71dbf4a5747638df0b13dcc0a97d60ca81295bd56ba4fce50e"
    )
    assert PUBLIC_KEY in (ROOT / "docs" / "passport_format.md").read_text()


@settings(max_examples=10, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40))
def test_another_implementation_gives_the_same_key(secret, message):
    passport = Passport.generate("Acme", date="2026-01-31", secret=secret)
    seed = independent.signing_seed(secret, independent.payload("Acme", "", "2026-01-31"))
    assert ed25519.public_key(seed) == passport.public_key()
    assert ed25519.verify(passport.public_key(), passport.sign(message), message)


def test_every_passport_has_a_key_of_its_own():
    pictures = torch.zeros(3, 4, 4, dtype=torch.uint8)
    pictured = PASSPORT.with_images(pictures, pictures)
    others = [
        pictured,
        Passport.generate("Acme", date="2026-11-23", secret=SECRET),
        Passport.generate("Acme", date="2026-11-23", secret=bytes(32)),
    ]
    assert len({passport.public_key() for passport in [PASSPORT, *others]}) == 4
    digest = pictured.images.digest()
    seed = independent.signing_seed(SECRET, PASSPORT.message, digest)
    assert ed25519.public_key(seed) == pictured.public_key()
    assert copy.deepcopy(PASSPORT).public_key() == PASSPORT.public_key()


def test_the_key_is_not_one_that_is_shown_elsewhere():
    """Whoever gets the reading key to read a message must not be able to sign."""
    seed = independent.signing_seed(SECRET, PASSPORT.message)
    shown = {PASSPORT.reading_key.hex(), *PASSPORT.opening().values()}
    assert seed.hex() not in shown and seed != SECRET
    assert seed.hex() not in repr(PASSPORT)


def test_signatures():
    key, signature = PASSPORT.public_key(), PASSPORT.sign(b"message")
    assert is_signed(key, signature, b"message") and PASSPORT.sign(b"message") == signature
    assert not is_signed(key, signature, b"Message")
    for bit in range(0, 512, 7):
        turned = bytearray(signature)
        turned[bit // 8] ^= 1 << bit % 8
        assert not is_signed(key, bytes(turned), b"message")
    assert not is_signed(key[:-1], signature, b"message")
    assert not is_signed(key, signature[:-1], b"message")
    assert not is_signed(b"", b"", b"message")
