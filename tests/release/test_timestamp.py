"""Timestamps of an authority of the tests' own; openssl, where it is, has its say on both sides."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta

import pytest
from asn1crypto import tsp
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.errors import InvalidArgument, MissingExtra, TimestampRefused
from passportize.release.timestamp import (
    LARGEST_RESPONSE,
    Timestamp,
    check_imprint,
    check_timestamp,
    load_roots,
    timestamp_request,
)
from tests.support.time_stamping_authority import (
    END,
    NOON,
    START,
    Authority,
    certificate,
    key,
    refusal,
)

DATA = b"what is stamped"
AUTHORITY = Authority()
ROOTS = (AUTHORITY.root,)
RESPONSE = AUTHORITY.response(DATA)
STAMPING = ExtendedKeyUsageOID.TIME_STAMPING


def test_what_it_says():
    found = check_timestamp(RESPONSE, DATA, ROOTS)
    assert found == Timestamp(NOON, "CN=Test TSA", timedelta(seconds=1))
    assert str(found) == "2026-01-31T12:00:00Z (give or take 1 s), on the word of CN=Test TSA"
    assert found.to_dict() == {
        "time": "2026-01-31T12:00:00Z",
        "authority": "CN=Test TSA",
        "accuracy": 1.0,
    }


@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_hashes(hash_name):
    response = AUTHORITY.response(DATA, hash_name=hash_name)
    assert check_timestamp(response, DATA, ROOTS).time == NOON
    with pytest.raises(TimestampRefused, match="for other data"):
        check_timestamp(response, DATA + b".", ROOTS)


def test_a_weak_hash():
    with pytest.raises(TimestampRefused, match="another rule"):
        check_timestamp(AUTHORITY.response(DATA, hash_name="sha1"), DATA, ROOTS)
    # The name of one hash over the value of another.
    odd = AUTHORITY.response(DATA, imprint=b"\0" * 20)
    with pytest.raises(TimestampRefused, match="for other data"):
        check_imprint(odd, DATA)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (None, None),
        ((0, 500, 0), timedelta(milliseconds=500)),
        ((60, 1, 2), timedelta(seconds=60, milliseconds=1, microseconds=2)),
    ],
)
def test_accuracy(accuracy, expected):
    response = AUTHORITY.response(DATA, accuracy=accuracy)
    assert check_timestamp(response, DATA, ROOTS).accuracy == expected


def test_an_accuracy_that_is_none():
    with pytest.raises(TimestampRefused, match="no sound"):
        check_timestamp(AUTHORITY.response(DATA, accuracy=(2**70, 0, 0)), DATA, ROOTS)


def test_which_is_earlier():
    def at(seconds, accuracy=None):
        slack = None if accuracy is None else timedelta(seconds=accuracy)
        return Timestamp(NOON + timedelta(seconds=seconds), "CN=x", slack)

    assert at(0).is_before(at(1)) and not at(1).is_before(at(0)) and not at(0).is_before(at(0))
    assert not at(0, 1).is_before(at(3, 2)) and at(0, 1).is_before(at(4, 2))
    assert not at(0, 60).is_before(at(60)) and at(0, 60).is_before(at(61))


# --- whose word it is --------------------------------------------------------------------------


def test_an_unknown_authority():
    with pytest.raises(TimestampRefused, match=r"by CN=Test TSA, and no given root .*issuer"):
        check_timestamp(RESPONSE, DATA, (Authority("Other").root,))
    with pytest.raises(TimestampRefused):
        check_timestamp(RESPONSE, DATA, ())
    # The certificate of the authority is no root.
    with pytest.raises(TimestampRefused):
        check_timestamp(RESPONSE, DATA, (AUTHORITY.own,))


def test_a_root_of_the_same_name():
    impostor = certificate(
        "Test TSA root", "Test TSA root", ca=True, signed_by="Mallory", key_of="Mallory"
    )
    with pytest.raises(TimestampRefused):
        check_timestamp(RESPONSE, DATA, (impostor,))


@pytest.mark.parametrize("time", [START - timedelta(days=2), END + timedelta(days=2)])
def test_an_expired_authority(time):
    with pytest.raises(TimestampRefused, match=r"CN=Test TSA was not valid at the time"):
        check_timestamp(AUTHORITY.response(DATA, time), DATA, ROOTS)


def test_an_expired_root():
    root = certificate("Test TSA root", "Test TSA root", ca=True, last=NOON - timedelta(days=1))
    with pytest.raises(TimestampRefused, match=r"certificate has expired"):
        check_timestamp(RESPONSE, DATA, (root,))


def test_a_timestamp_outlives_its_certificate():
    long_ago = START - timedelta(days=3650)
    root = certificate("Old root", "Old root", ca=True, first=long_ago, last=END)
    own = certificate("Old", "Old root", purpose=STAMPING, first=long_ago, last=START)
    response = AUTHORITY.response(DATA, long_ago + timedelta(days=1), signer=own)
    assert check_timestamp(response, DATA, (root,)).authority == "CN=Old"


@pytest.mark.parametrize(
    ("purpose", "critical"),
    [(None, True), (ExtendedKeyUsageOID.CODE_SIGNING, True), (STAMPING, False)],
)
def test_a_certificate_that_is_not_for_timestamps(purpose, critical):
    own = certificate("Somebody", "Test TSA root", purpose=purpose, critical=critical)
    with pytest.raises(TimestampRefused, match=r"CN=Somebody, and no given root .*purpose"):
        check_timestamp(AUTHORITY.response(DATA, signer=own), DATA, ROOTS)


def test_a_chain():
    middle = certificate("Middle", "Test TSA root", ca=True)
    own = certificate("Low", "Middle", purpose=STAMPING)
    response = AUTHORITY.response(DATA, signer=own, embedded=[own, middle])
    assert check_timestamp(response, DATA, ROOTS).authority == "CN=Low"
    with pytest.raises(TimestampRefused):
        check_timestamp(AUTHORITY.response(DATA, signer=own), DATA, ROOTS)
    # A certificate that is no CA vouches for nobody.
    low = certificate("Middle", "Test TSA root", purpose=STAMPING)
    response = AUTHORITY.response(DATA, signer=own, embedded=[own, low])
    with pytest.raises(TimestampRefused):
        check_timestamp(response, DATA, ROOTS)


def test_nobody_borrows_the_name_of_another():
    """A second certificate with issuer and number of the signer could lend it another name."""
    famous = certificate(
        "Famous", "Test TSA root", purpose=STAMPING, serial=AUTHORITY.own.serial_number
    )
    forged = certificate(
        "Famous",
        "Test TSA root",
        purpose=STAMPING,
        serial=AUTHORITY.own.serial_number,
        signed_by="Mallory",
    )
    for other in (famous, forged):
        both = AUTHORITY.response(DATA, embedded=[other, AUTHORITY.own])
        with pytest.raises(TimestampRefused, match="2 certificates fit"):
            check_timestamp(both, DATA, ROOTS)
        alone = AUTHORITY.response(DATA, embedded=[other])
        with pytest.raises(TimestampRefused):
            check_timestamp(alone, DATA, ROOTS)
        with pytest.raises(TimestampRefused, match="2 certificates fit"):
            check_timestamp(alone, DATA, (*ROOTS, AUTHORITY.own))
    assert check_timestamp(RESPONSE, DATA, (*ROOTS, AUTHORITY.own)).authority == "CN=Test TSA"


def test_without_the_certificate_of_the_authority():
    with pytest.raises(TimestampRefused, match="without the certificate"):
        check_timestamp(AUTHORITY.response(DATA, embedded=[]), DATA, ROOTS)


def test_names_do_not_move_the_cursor():
    own = certificate("A\x1b[2J\u202eB", "Test TSA root", purpose=STAMPING)
    found = check_timestamp(AUTHORITY.response(DATA, signer=own), DATA, ROOTS)
    assert found.authority.isprintable() and "B" in found.authority
    with pytest.raises(TimestampRefused) as caught:
        check_imprint(refusal("no \x1b[2Jtime " * 6), DATA)
    assert str(caught.value).isprintable() and "no  [2Jtime" in str(caught.value)


# --- malformed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"<html>",
        RESPONSE[:-1],
        RESPONSE + b"\0",
        bytes(tsp.TimeStampResp.load(RESPONSE)["time_stamp_token"].dump()),
        b"0\x80" + b"0\x80" * 10_000,
    ],
    ids=["empty", "page", "cut", "longer", "bare token", "deep"],
)
def test_malformed(response):
    with pytest.raises(TimestampRefused, match="no sound RFC 3161 response"):
        check_imprint(response, DATA)
    with pytest.raises(TimestampRefused):
        check_timestamp(response, DATA, ROOTS)


def test_too_large():
    with pytest.raises(TimestampRefused, match="more than"):
        check_imprint(RESPONSE + b"\0" * LARGEST_RESPONSE, DATA)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_change_of_a_byte_changes_what_it_says(data):
    changed = bytearray(RESPONSE)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(RESPONSE) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = check_timestamp(bytes(changed), DATA, ROOTS)
    except TimestampRefused:
        return
    assert found == check_timestamp(RESPONSE, DATA, ROOTS)


# --- roots, extra ------------------------------------------------------------------------------


def test_roots(tmp_path):
    file = tmp_path / "roots.pem"
    file.write_bytes(AUTHORITY.roots_pem() * 2 + Authority("Other").roots_pem())
    assert [root.subject for root in load_roots(file)] == [
        AUTHORITY.root.subject,
        Authority("Other").root.subject,
    ]
    assert check_timestamp(RESPONSE, DATA, load_roots(file)).time == NOON
    file.write_bytes(AUTHORITY.root.public_bytes(Encoding.DER))
    with pytest.raises(InvalidArgument, match="no certificates in PEM"):
        load_roots(file)
    with pytest.raises(InvalidArgument, match="No such file"):
        load_roots(tmp_path / "missing.pem")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    for call in (
        lambda: timestamp_request(DATA),
        lambda: check_imprint(RESPONSE, DATA),
        lambda: check_timestamp(RESPONSE, DATA, ROOTS),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'passportize\[timestamp\]'"):
            call()


def test_the_request():
    request = tsp.TimeStampReq.load(timestamp_request(DATA)).native
    assert request["message_imprint"]["hash_algorithm"]["algorithm"] == "sha256"
    assert request["cert_req"] is True and request["nonce"] is None
    assert timestamp_request(DATA) == timestamp_request(DATA)


# --- openssl -----------------------------------------------------------------------------------


CONFIG = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.3.6.1.4.1.32473.1
digests = sha256, sha512
accuracy = secs:2
"""


def openssl(folder, *arguments):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl on this machine")
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)


def test_openssl_agrees_on_what_is_made_here(tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "other").write_bytes(DATA + b".")
    (tmp_path / "t.tsr").write_bytes(RESPONSE)
    (tmp_path / "root.pem").write_bytes(AUTHORITY.roots_pem())
    at = ("-in", "t.tsr", "-CAfile", "root.pem", "-attime", str(int(NOON.timestamp())))
    assert openssl(tmp_path, "ts", "-verify", "-data", "data", *at).returncode == 0
    assert openssl(tmp_path, "ts", "-verify", "-data", "other", *at).returncode != 0


def test_an_authority_made_of_openssl(tmp_path):
    """It answers the request that is made here, and one of its own making."""
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "ts.cnf").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "serial").write_text("01")
    (tmp_path / "own.pem").write_bytes(AUTHORITY.own.public_bytes(Encoding.PEM))
    (tmp_path / "own.key").write_bytes(
        key("Test TSA").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "ours.tsq").write_bytes(timestamp_request(DATA))
    query = ("ts", "-query", "-data", "data", "-sha512", "-cert", "-out", "theirs.tsq")
    assert openssl(tmp_path, *query).returncode == 0
    for name in ("ours", "theirs"):
        reply = ("ts", "-reply", "-config", "ts.cnf", "-queryfile", f"{name}.tsq")
        signing = ("-signer", "own.pem", "-inkey", "own.key", "-out", f"{name}.tsr")
        done = openssl(tmp_path, *reply, *signing)
        assert done.returncode == 0, done.stderr
        found = check_timestamp((tmp_path / f"{name}.tsr").read_bytes(), DATA, ROOTS)
        assert found.authority == "CN=Test TSA" and found.accuracy == timedelta(seconds=2)
