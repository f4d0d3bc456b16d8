"""Committing to a release and opening it: the owner, a stranger, and every file that is another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import rfc8785
import torch
from torch import nn

import passportize as pp
from passportize.errors import (
    BadSignature,
    CheckpointError,
    ClaimFileError,
    CommitmentFileError,
    CommitmentMismatch,
    InvalidArgument,
    TimestampRefused,
    WrongPassport,
)
from passportize.release.checkpoint import save_weights
from passportize.release.release_commitment import parse_commitment
from tests.support.time_stamping_authority import END, NOON, Authority

SECRET = bytes(range(32))
AUTHORITY = Authority()


@dataclass
class Release:
    passport: pp.Passport
    claim: pp.Claim
    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / name


def release(folder: Path, owner: str, secret: bytes, seed: int = 0) -> Release:
    """A marked model, its claim and its weights in two formats; nothing is trained."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    passport = pp.Passport.generate(owner, date="2026-01-31", secret=secret)
    pp.passportize(model, passport, example_inputs=torch.zeros(2, 1, 8, 8))
    pp.embed_signature(model)
    claim = pp.save_claim(model, folder / "claim")
    pp.unpassportize(model)
    save_weights(folder / "weights.safetensors", model.state_dict())
    torch.save(model.state_dict(), folder / "weights.pth")
    (folder / "roots.pem").write_bytes(AUTHORITY.roots_pem())
    return Release(passport, claim, folder)


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    return release(tmp_path_factory.mktemp("acme"), "Acme", SECRET)


@pytest.fixture(scope="module")
def mallory(tmp_path_factory):
    return release(tmp_path_factory.mktemp("mallory"), "Mallory", b"m" * 32, seed=1)


@pytest.fixture(scope="module")
def commitment(acme):
    made = pp.commit_release(acme.passport, acme.claim, acme.file("weights.safetensors"))
    return made.with_timestamp(AUTHORITY.response(made.stamped_bytes()))


def test_everything_is_shown_and_holds(acme, commitment, tmp_path):
    file = tmp_path / "acme.commitment.json"
    commitment.save(file)
    opened = pp.open_commitment(
        file,
        passport=acme.passport,
        claim=acme.file("claim"),
        weights=acme.file("weights.safetensors"),
        roots=acme.file("roots.pem"),
    )
    assert opened.commitment == commitment
    assert opened.shown == ("passport", "claim", "weights")
    assert opened.timestamp.time == NOON and opened.timestamp.authority == "CN=Test TSA"
    text = str(opened)
    assert "on the word of CN=Test TSA" in text and "on the owner's word alone" in text
    record = json.loads(json.dumps(opened.to_dict()))
    assert record["timestamp"]["time"] == "2026-01-31T12:00:00Z"
    assert record["claim"] == acme.claim.digest() and record["weights"] == acme.claim.weights
    assert record["passport"] == acme.passport.commitment()
    assert SECRET.hex() not in text + repr(opened) + file.read_text()


def test_what_is_not_shown_is_said(commitment):
    opened = pp.open_commitment(commitment)
    assert opened.shown == () and opened.timestamp is None
    text = str(opened)
    assert text.count("not shown") == 3 and "NOT CHECKED" in text
    assert opened.to_dict()["timestamp_unchecked"] is True


def test_a_claim_in_memory_or_as_a_file_and_no_weights(acme):
    one = pp.commit_release(acme.passport, acme.claim, date="2026-11-26")
    other = pp.commit_release(acme.passport, acme.file("claim"), date="2026-11-26")
    assert one == other and one.weights_file == "" and one.weights == acme.claim.weights
    for name in ("weights.safetensors", "weights.pth"):
        opened = pp.open_commitment(one, claim=acme.claim, weights=acme.file(name))
        assert opened.shown == ("claim", "weights")
    assert "timestamp:  none" in str(pp.open_commitment(one))


# --- committing --------------------------------------------------------------------------------


def test_only_to_what_belongs_together(acme, mallory):
    with pytest.raises(WrongPassport, match="not with that of Mallory"):
        pp.commit_release(mallory.passport, acme.claim)
    with pytest.raises(CommitmentMismatch, match="not those that the claim was made for"):
        pp.commit_release(acme.passport, acme.claim, mallory.file("weights.pth"))
    with pytest.raises(CheckpointError, match="No such file"):
        pp.commit_release(acme.passport, acme.claim, acme.file("missing.pth"))
    with pytest.raises(ClaimFileError):
        pp.commit_release(acme.passport, acme.file("weights.pth"))
    with pytest.raises(InvalidArgument, match="date"):
        pp.commit_release(acme.passport, acme.claim, date="today")


# --- files that are not those ------------------------------------------------------------------


def test_another_passport(acme, mallory, commitment):
    with pytest.raises(CommitmentMismatch, match=r"committed to: the passport of Mallory; show"):
        pp.open_commitment(commitment, passport=mallory.passport)
    pictures = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(CommitmentMismatch, match="the passport of Acme;"):
        pp.open_commitment(commitment, passport=acme.passport.with_images(pictures, pictures))


def test_another_claim(mallory, commitment):
    with pytest.raises(CommitmentMismatch, match=r"committed to: the claim; show"):
        pp.open_commitment(commitment, claim=mallory.claim)


def test_other_weights(acme, mallory, commitment):
    with pytest.raises(CommitmentMismatch, match=r"the weights in .*weights\.pth;"):
        pp.open_commitment(commitment, weights=mallory.file("weights.pth"))
    with pytest.raises(CommitmentMismatch, match=r"the file .*weights\.pth, though its tensors"):
        pp.open_commitment(commitment, weights=acme.file("weights.pth"))
    with pytest.raises(CheckpointError, match="No such file"):
        pp.open_commitment(commitment, weights=acme.file("missing.pth"))


def test_all_that_differs_is_named(mallory, commitment):
    with pytest.raises(CommitmentMismatch) as caught:
        pp.open_commitment(
            commitment,
            passport=mallory.passport,
            claim=mallory.claim,
            weights=mallory.file("weights.pth"),
        )
    for part in ("the passport of Mallory", "the claim", "the weights in"):
        assert part in str(caught.value)


def resigned(commitment, passport, **changes):
    """The same statement, or a changed one, signed by somebody."""
    record = {**json.loads(commitment.stamped_bytes()), **changes}
    record["public_key"] = passport.public_key().hex()
    del record["signature"]
    record["signature"] = passport.sign(rfc8785.dumps(record)).hex()
    return parse_commitment(rfc8785.dumps(record), "f")


def test_the_passport_of_another_beside_a_key_of_ones_own(acme, mallory, commitment):
    """Published digests can be copied; the key that belongs to them cannot."""
    stolen = resigned(commitment, mallory.passport)
    assert stolen.passport == acme.passport.commitment()
    with pytest.raises(CommitmentMismatch, match="is named, but another key signed"):
        pp.open_commitment(stolen, passport=acme.passport)
    with pytest.raises(CommitmentMismatch, match="the passport of Mallory"):
        pp.open_commitment(stolen, passport=mallory.passport)


def test_the_claim_of_another_beside_a_passport_of_ones_own(acme, mallory):
    own = pp.commit_release(mallory.passport, mallory.claim)
    mixed = resigned(own, mallory.passport, claim=acme.claim.digest())
    with pytest.raises(CommitmentMismatch, match="with another passport or other weights"):
        pp.open_commitment(mixed, passport=mallory.passport, claim=acme.claim)
    mixed = resigned(own, mallory.passport, weights=acme.claim.weights)
    with pytest.raises(CommitmentMismatch, match="with another passport or other weights"):
        pp.open_commitment(mixed, claim=mallory.claim)


# --- timestamps --------------------------------------------------------------------------------


def test_no_timestamp_where_one_is_asked_for(acme):
    bare = pp.commit_release(acme.passport, acme.claim, date="2020-01-01")
    with pytest.raises(TimestampRefused, match=r"2020-01-01, is the owner's word alone"):
        pp.open_commitment(bare, roots=acme.file("roots.pem"))


def test_a_timestamp_of_another_commitment(acme, commitment):
    other = pp.commit_release(acme.passport, acme.claim, date="2026-11-26")
    record = json.loads(other.to_bytes())
    record["timestamp"] = json.loads(commitment.to_bytes())["timestamp"]
    moved = parse_commitment(rfc8785.dumps(record), "f")
    with pytest.raises(TimestampRefused, match="for other data"):
        pp.open_commitment(moved, roots=acme.file("roots.pem"))


def test_an_authority_that_is_unknown_or_expired(acme, tmp_path):
    bare = pp.commit_release(acme.passport, acme.claim)
    (tmp_path / "other.pem").write_bytes(Authority("Other").roots_pem())
    stamped = bare.with_timestamp(AUTHORITY.response(bare.stamped_bytes()))
    with pytest.raises(TimestampRefused, match="no given root certificate vouches"):
        pp.open_commitment(stamped, roots=tmp_path / "other.pem")
    late = bare.with_timestamp(AUTHORITY.response(bare.stamped_bytes(), END.replace(year=2030)))
    with pytest.raises(TimestampRefused, match="was not valid at the time"):
        pp.open_commitment(late, roots=acme.file("roots.pem"))
    with pytest.raises(InvalidArgument, match="no certificates in PEM"):
        pp.open_commitment(stamped, roots=acme.file("claim"))


def test_a_file_that_was_changed(acme, commitment, tmp_path):
    file = tmp_path / "f.json"
    file.write_bytes(commitment.to_bytes().replace(b'"date":"2', b'"date":"1'))
    with pytest.raises(BadSignature):
        pp.open_commitment(file, passport=acme.passport)
    file.write_bytes(commitment.to_bytes() + b"\n")
    with pytest.raises(CommitmentFileError, match="not canonical"):
        pp.open_commitment(file)
