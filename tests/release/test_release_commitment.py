"""The release commitment as a file: known answers, another reader, every way to change it."""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import replace
from datetime import datetime, timezone

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passportize as pp
import tests.support.independent_ed25519 as ed25519
from passportize.errors import (
    BadSignature,
    CommitmentError,
    CommitmentFileError,
    InvalidArgument,
    MissingExtra,
    TimestampRefused,
)
from passportize.release.release_commitment import (
    FORMAT,
    ReleaseCommitment,
    parse_commitment,
    read_commitment,
)
from tests.support import ROOT
from tests.support.time_stamping_authority import Authority, refusal

SECRET = bytes(range(32))
PASSPORT = pp.Passport.generate(
    "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
)
DIGESTS = "aa" * 32, "bb" * 32, "cc" * 32
PLAIN = ReleaseCommitment.signed(PASSPORT, *DIGESTS, date="2026-11-26")
AUTHORITY = Authority()
STAMPED = PLAIN.with_timestamp(AUTHORITY.response(PLAIN.stamped_bytes()))


def canonical(record):
    """RFC 8785 for an object of whole numbers and ASCII text without quotes or backslashes."""
    parts = []
    for key in sorted(record):
        value = record[key]
        if isinstance(value, str):
            assert value.isascii() and value.isprintable() and not set(value) & set('"\\')
            value = f'"{value}"'
        parts.append(f'"{key}":{value}')
    return ("{" + ",".join(parts) + "}").encode()


def signed_anew(record, passport=PASSPORT):
    """What somebody with a key makes of a record, sound or not."""
    kept = {key: value for key, value in record.items() if key not in ("signature", "timestamp")}
    kept["public_key"] = passport.public_key().hex()
    return rfc8785.dumps({**kept, "signature": passport.sign(rfc8785.dumps(kept)).hex()})


def test_known_answer():
    text = PLAIN.to_bytes().decode()
    assert text == (
        '{"claim":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",'
        '"date":"2026-11-26","format":"passportize-release-commitment",'
        '"passport":"473e9b9d21b19b70bcb4131791f8595c986b365249c9ab0e9b72ab40f11e3bd2",'
        '"public_key":"ad659077848d89560a42b3225ff13fe7dfae7d2fa6b388a254e5d039ed869212",'
        '"signature":"10565ea67122fb333034cab5729b35774a4c343ff29bd8cb4bd1492e694e195b'
        '5fcf5582e2b8775a1667065d77caf7b008fd10bc0a3d790bdf763836b5460e09","version":1,'
        '"weights":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",'
        '"weights_file":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"}'
    )
    assert text in (ROOT / "docs" / "commitment.md").read_text()


@pytest.mark.parametrize("commitment", [PLAIN, STAMPED], ids=["plain", "stamped"])
def test_another_implementation_reads_it(commitment):
    record = json.loads(commitment.to_bytes())
    assert canonical(record) == commitment.to_bytes()
    assert record["format"] == FORMAT and record["version"] == 1
    stamped = {key: value for key, value in record.items() if key != "timestamp"}
    signed = {key: value for key, value in stamped.items() if key != "signature"}
    assert canonical(stamped) == commitment.stamped_bytes() == PLAIN.to_bytes()
    assert canonical(signed) == commitment.signed_bytes()
    key, signature = bytes.fromhex(record["public_key"]), bytes.fromhex(record["signature"])
    assert ed25519.verify(key, signature, canonical(signed))
    assert base64.b64decode(record.get("timestamp", "")) == commitment.timestamp


def test_canonical_json_of_the_library():
    """The example of RFC 8785, section 3.2.2 to 3.2.4, which the library is trusted with."""
    record = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert (
        rfc8785.dumps(record)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


@pytest.mark.parametrize("commitment", [PLAIN, STAMPED], ids=["plain", "stamped"])
def test_there_and_back(commitment, tmp_path):
    file = tmp_path / "acme.commitment.json"
    commitment.save(file)
    assert read_commitment(file) == commitment
    assert file.stat().st_mode & 0o777 == 0o644 & ~_umask()
    with pytest.raises(CommitmentFileError, match="exists already"):
        commitment.save(file)
    commitment.save(file, overwrite=True)
    text = file.read_text() + repr(commitment)
    assert SECRET.hex() not in text and "Acme" not in text


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_a_file_of_weights():
    bare = ReleaseCommitment.signed(PASSPORT, *DIGESTS[:2], date="2026-11-26")
    assert "weights_file" not in json.loads(bare.to_bytes())
    assert parse_commitment(bare.to_bytes(), "f") == bare
    # Taking the entry out of one that has it is a change.
    record = json.loads(PLAIN.to_bytes())
    del record["weights_file"]
    with pytest.raises(BadSignature):
        parse_commitment(rfc8785.dumps(record), "f")


def test_the_date():
    today = datetime.now(timezone.utc).date()
    made = datetime.fromisoformat(ReleaseCommitment.signed(PASSPORT, *DIGESTS).date).date()
    assert (made - today).days in (0, 1)
    for date in ("20261126", "2026-W48-4", "26.11.2026", "2026-02-30", ""):
        with pytest.raises(InvalidArgument, match="YYYY-MM-DD"):
            ReleaseCommitment.signed(PASSPORT, *DIGESTS, date=date)


# --- every way to change it --------------------------------------------------------------------


@pytest.mark.parametrize("field", sorted(json.loads(PLAIN.to_bytes())))
def test_no_field_can_be_changed(field):
    record = json.loads(PLAIN.to_bytes())
    value = record[field]
    if field == "version":
        changes = [0, 2, -1, True, "1", None]
    else:
        swap = {"0": "1", "1": "2", "2": "3", "6": "7", "a": "b", "b": "c", "c": "d"}
        changes = [
            value[:i] + swap[value[i]] + value[i + 1 :]
            for i in range(len(value))
            if value[i] in swap
        ]
        changes += ["", value[:-1], value + "0", value.upper() + "A", None, 7, [value], {}]
    assert len(changes) >= 6
    for change in changes:
        data = rfc8785.dumps({**record, field: change})
        with pytest.raises((BadSignature, CommitmentFileError)):
            parse_commitment(data, "f")
    del record[field]
    with pytest.raises((BadSignature, CommitmentFileError)):
        parse_commitment(rfc8785.dumps(record), "f")


@pytest.mark.parametrize("field", ["claim", "date", "passport", "weights", "weights_file"])
def test_a_changed_digest_is_a_bad_signature(field):
    record = json.loads(PLAIN.to_bytes())
    record[field] = "2026-01-01" if field == "date" else "dd" * 32
    with pytest.raises(BadSignature, match=r"not signed by the key ad659077"):
        parse_commitment(rfc8785.dumps(record), "f")
    # Whoever signs it anew does so with a key of their own.
    mallory = pp.Passport.generate("Mallory", date="2026-11-28", secret=b"m" * 32)
    forged = parse_commitment(signed_anew(record, mallory), "f")
    assert forged.public_key != PLAIN.public_key


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PLAIN.to_bytes() + b"\n", "not canonical"),
        (b" " + PLAIN.to_bytes(), "not canonical"),
        (PLAIN.to_bytes().replace(b":", b": "), "not canonical"),
        (json.dumps(dict(reversed(json.loads(PLAIN.to_bytes()).items()))).encode(), "canonical"),
        (PLAIN.to_bytes().replace(b"aaaa", b"\\u0061aaa"), "not canonical"),
        (PLAIN.to_bytes()[:-1] + b',"version":1}', "stands twice"),
        (PLAIN.to_bytes().replace(b'"version":1', b'"version":1.0'), "version is unknown"),
        (PLAIN.to_bytes().replace(b'"version":1', b'"version":NaN'), "the number NaN"),
        (PLAIN.to_bytes().replace(b'"version":1', b'"version":1e400'), "version is unknown"),
        (PLAIN.to_bytes().replace(b'"version":1', b'"version":2'), "version 2, this passportize"),
        (PLAIN.to_bytes()[:-1], "no release commitment"),
        (b"\xef\xbb\xbf" + PLAIN.to_bytes(), "no release commitment"),
        (b"\xff" + PLAIN.to_bytes(), "no release commitment"),
        (PLAIN.to_bytes().decode().encode("utf-16"), "no release commitment"),
        (PLAIN.to_bytes().replace(FORMAT.encode(), b"passportize-passport"), "its format is not"),
        (b"", "no release commitment"),
        (b"[]", "expected dict, found list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b"9" * 200_000, "no release commitment"),
    ],
)
def test_hostile_json(data, reason):
    with pytest.raises(CommitmentFileError, match=reason) as caught:
        parse_commitment(data, "f.json")
    assert str(caught.value).startswith("f.json: ") and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"note": "x"}, "missing or unknown"),
        ({"\U0001f600": "x"}, "missing or unknown"),
        ({"weights_file": ""}, "32 bytes in lower-case hex"),
        ({"claim": "AA" * 32}, "32 bytes in lower-case hex"),
        ({"date": "20261126"}, "date"),
        ({"date": "2026-11-26\u202e"}, "control characters"),
        ({"version": 2**53 - 1}, "reads up to 1"),
    ],
)
def test_a_signature_does_not_make_it_sound(change, reason):
    """What the owner of a key signs is read as strictly as anything."""
    record = json.loads(PLAIN.to_bytes())
    with pytest.raises(CommitmentFileError, match=reason):
        parse_commitment(signed_anew({**record, **change}), "f")


@pytest.mark.parametrize("timestamp", ["", "QQ", "QR==", "!", 7, None, "QQ==\n"])
def test_a_timestamp_is_base64(timestamp):
    record = {**json.loads(PLAIN.to_bytes()), "timestamp": timestamp}
    with pytest.raises(CommitmentFileError):
        parse_commitment(rfc8785.dumps(record), "f")


def test_files(tmp_path):
    with pytest.raises(CommitmentFileError, match="No such file"):
        read_commitment(tmp_path / "missing.json")
    (tmp_path / "large.json").write_bytes(b" " * (256 * 2**10 + 1))
    with pytest.raises(CommitmentFileError, match="larger than"):
        read_commitment(tmp_path / "large.json")


def test_made_by_hand_it_must_be_signed_too():
    values = {key: value for key, value in vars(PLAIN).items() if key != "signature"}
    assert ReleaseCommitment(**values, signature=PLAIN.signature) == PLAIN
    for signature in ("00" * 64, "", "no hex"):
        with pytest.raises(BadSignature):
            ReleaseCommitment(**values, signature=signature)


TEXT = st.text(max_size=70)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


KEYS = st.sampled_from([*sorted(vars(PLAIN)), "format", "version", "x"])


# Hypothesis makes its table of characters within the first example.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, JSON))
def test_any_json_is_refused_in_our_words(change):
    record = {**json.loads(PLAIN.to_bytes()), **change}
    data = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    try:
        read = parse_commitment(data, "f")
    except CommitmentError:
        return
    assert replace(read, timestamp=b"") == PLAIN


@settings(max_examples=300)
@given(st.data())
def test_any_change_of_a_byte_is_seen(data):
    original = STAMPED.to_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[place] = data.draw(st.integers(0, 255).filter(lambda value: value != original[place]))
    try:
        read = parse_commitment(bytes(changed), "f")
    except (BadSignature, CommitmentFileError):
        return
    # The timestamp is under a signature of its own, which is checked with roots at hand.
    assert read.timestamp != STAMPED.timestamp
    assert read.stamped_bytes() == STAMPED.stamped_bytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_our_words(data):
    with pytest.raises(CommitmentFileError):
        parse_commitment(data, "f")


# --- timestamps --------------------------------------------------------------------------------


def test_a_timestamp_is_for_this_commitment():
    other = ReleaseCommitment.signed(PASSPORT, *DIGESTS[1:], date="2026-11-26")
    with pytest.raises(TimestampRefused, match="for other data"):
        PLAIN.with_timestamp(AUTHORITY.response(other.stamped_bytes()))
    with pytest.raises(TimestampRefused, match="granted no timestamp"):
        PLAIN.with_timestamp(refusal("busy"))
    with pytest.raises(TimestampRefused, match="no sound RFC 3161 response"):
        PLAIN.with_timestamp(b"<html>503</html>")
    with pytest.raises(TimestampRefused, match="bears a timestamp already"):
        STAMPED.with_timestamp(STAMPED.timestamp)


def test_what_is_stamped_is_the_file_as_it_is_without_a_timestamp():
    assert PLAIN.to_bytes() == PLAIN.stamped_bytes() == STAMPED.stamped_bytes()
    assert STAMPED.timestamp_request() == PLAIN.timestamp_request()


def test_without_the_extra(monkeypatch):
    data = PLAIN.to_bytes()
    monkeypatch.setitem(sys.modules, "rfc8785", None)
    with pytest.raises(MissingExtra, match=r"pip install 'passportize\[timestamp\]'"):
        ReleaseCommitment.signed(PASSPORT, *DIGESTS)
    with pytest.raises(MissingExtra, match=r"passportize\[timestamp\]"):
        parse_commitment(data, "f")
