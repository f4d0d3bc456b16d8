"""Commitments to passports, and what opens them."""

from __future__ import annotations

import hashlib
import hmac

import pytest
import torch

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument
from passportize.passport.commitment import (
    OPENING_FORMAT,
    check_commitment,
    commit,
    commitment_salt,
    same_commitment,
)
from passportize.passport.passport import Passport

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def passport():
    return Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )


def images():
    gamma = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    return gamma, torch.arange(48, dtype=torch.float32).reshape(3, 4, 4) / 16 - 1


def test_it_is_a_plain_hash(passport):
    """With hashlib alone, from the opening alone."""
    opening = passport.opening()
    message = independent.payload(*(opening[name] for name in ("owner", "contact", "date")))
    secret, salt = (bytes.fromhex(opening[name]) for name in ("secret", "salt"))
    extracted = hmac.new(b"passportize/passport/v1", secret, hashlib.sha256).digest()
    info = independent.label("commitment salt")
    assert salt == hmac.new(extracted, info + b"\1", hashlib.sha256).digest()
    assert salt == commitment_salt(secret)
    encoded = independent.label("passportize/commitment/v1", salt, secret, message, b"")
    assert passport.commitment() == hashlib.sha256(encoded).hexdigest()
    assert opening["format"] == OPENING_FORMAT == "passportize-opening-v1"


def test_a_salt_that_is_not_derived_from_the_secret_is_no_opening(passport):
    """Else an owner could open a commitment with a secret and two salts."""
    salt = bytes(32)
    other = commit(SECRET, salt, passport.owner_message, b"")
    assert not check_commitment(other, {**passport.opening(), "salt": salt.hex()})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ab", "AB", True),
        (" ab\n", "ab", True),
        ("ab", "abc", False),
        ("é", "ab", False),
        ("", "", True),
    ],
)
def test_commitments_are_compared_as_hexadecimal_digits(one, other, same):
    assert same_commitment(one, other) is same


@pytest.mark.parametrize("missing", ["format", "secret", "salt", "contact", "images_sha256"])
def test_incomplete_openings_name_what_is_missing(passport, missing):
    opening = passport.opening()
    del opening[missing]
    with pytest.raises(InvalidArgument, match=missing):
        check_commitment(passport.commitment(), opening)


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
