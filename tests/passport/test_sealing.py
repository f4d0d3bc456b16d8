from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passportize.errors import InvalidArgument, PassportFileError, PassportizeError, WrongPassphrase
from passportize.passport import sealing as sealed_file
from passportize.passport.passport import Passport
from passportize.passport.sealing import ScryptCost, seal, unseal
from passportize.utils.files import write_atomically

CHEAP = ScryptCost(n=2)
SECRET = bytes(range(32))
POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions are a POSIX matter")


@pytest.fixture
def passport():
    return Passport.generate(
        "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
    )


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch):
    # Only the price of a guess; test_default_cost keeps the real one.
    monkeypatch.setattr(sealed_file.ScryptCost.__init__, "__defaults__", (2, 8, 1))


def resealed(data, **changes):
    """A sealed file with changed fields and a checksum that fits, as a forger would make it."""
    record = {**json.loads(data), **changes}
    record.pop("sha256")
    record["sha256"] = hashlib.sha256(sealed_file._canonical(record)).hexdigest()
    return sealed_file._canonical(record)


# --- passports on disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [None, "correct horse", "ünï©ode 🔑"])
@pytest.mark.parametrize("pictured", [False, True])
def test_a_saved_passport_comes_back(passport, tmp_path, passphrase, pictured):
    if pictured:
        passport = passport.with_images(
            torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4), torch.randn(2, 3, 4, 4)
        )
    path = tmp_path / "acme.passport"
    passport.save(path, passphrase)
    loaded = Passport.load(path, passphrase)
    assert loaded == passport
    assert loaded.owner_message == passport.owner_message
    assert loaded.reading_key == passport.reading_key
    assert loaded.stream("triggers", 999) == passport.stream("triggers", 999)
    assert loaded.claimant_chosen is pictured
    assert [entry.name for entry in tmp_path.iterdir()] == ["acme.passport"]


@POSIX
@pytest.mark.parametrize("passphrase", [None, "x"])
def test_files_are_private_whatever_the_umask(passport, tmp_path, passphrase):
    path = tmp_path / "p"
    before = os.umask(0)
    try:
        passport.save(path, passphrase)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@POSIX
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_loaded_with_a_warning(passport, tmp_path, mode):
    path = tmp_path / "p"
    passport.save(path)
    path.chmod(mode)
    with pytest.warns(UserWarning, match="chmod 600"):
        assert Passport.load(path) == passport


def test_a_passphrase_that_was_not_needed_is_reported(passport, tmp_path):
    passport.save(tmp_path / "p")
    with pytest.warns(UserWarning, match="not sealed"):
        assert Passport.load(tmp_path / "p", "secret") == passport


def test_existing_files_are_kept_unless_told_otherwise(passport, tmp_path):
    path = tmp_path / "p"
    passport.save(path)
    other = Passport.generate("Other")
    with pytest.raises(PassportFileError, match="overwrite=True"):
        other.save(path)
    assert Passport.load(path) == passport
    other.save(path, overwrite=True)
    assert Passport.load(path) == other


@pytest.mark.parametrize("content", [b"", b"\n", b"[]", b"12", b"nonsense", b"\xff\xfe\x00", b"{}"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "p"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(PassportFileError, match="p "):
        Passport.load(path)


def test_deep_nesting_is_refused(tmp_path):
    path = tmp_path / "p"
    path.write_bytes(b"[" * 200_000)
    path.chmod(0o600)
    with pytest.raises(PassportFileError):
        Passport.load(path)


def test_missing_files_directories_and_odd_paths_are_refused(tmp_path):
    with pytest.raises(PassportFileError, match="there is no file"):
        Passport.load(tmp_path / "absent")
    with pytest.raises(PassportFileError, match="not a file"):
        Passport.load(tmp_path)
    with pytest.raises(PassportFileError):
        Passport.load("nul\0byte")
    with pytest.raises(PassportFileError):
        Passport.load(tmp_path / ("long" * 100))


@POSIX
def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(PassportFileError, match="not a file"):
        Passport.load(tmp_path / "pipe")


def rewritten(path, **changes):
    content = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "passportize-claim"},
        {"version": "1"},
        {"version": 0},
        {"version": True},
        {"surplus": 1},
        {"secret": SECRET[:-1].hex()},
        {"secret": "zz" * 32},
        {"secret": bytes(32).hex()},
        {"secret": 7},
        {"owner": ""},
        {"owner": "Mallory"},
        {"owner": ["Acme Vision"]},
        {"owner": "\ud800"},
        {"contact": "c" * 300},
        {"date": "today"},
        {"images": "AAAA"},
        {"images": "not base64"},
        {"images": [1]},
        {"commitment": "00" * 32},
        {"commitment": 0},
        *({name: None} for name in ("format", "version", "secret", "owner", "images")),
    ],
)
def test_edited_files_are_refused_and_never_quoted(passport, tmp_path, changes):
    path = tmp_path / "p"
    passport.save(path)
    rewritten(path, **changes)
    with pytest.raises(PassportFileError) as caught:
        Passport.load(path)
    assert str(path) in str(caught.value)
    assert SECRET.hex()[:8] not in str(caught.value)


def test_newer_versions_ask_for_an_upgrade(passport, tmp_path):
    path = tmp_path / "p"
    passport.save(path)
    rewritten(path, version=2)
    with pytest.raises(PassportFileError, match="upgrade"):
        Passport.load(path)
    path.write_bytes(resealed(seal(b"x", "pw"), version=2))
    with pytest.raises(PassportFileError, match="upgrade"):
        Passport.load(path, "pw")


def test_whoever_edits_white_space_does_no_harm(passport, tmp_path):
    path = tmp_path / "p"
    passport.save(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Passport.load(path) == passport
    passport.save(path, "pw", overwrite=True)
    path.write_bytes(path.read_bytes() + b"\r\n")
    assert Passport.load(path, "pw") == passport


# --- sealing -------------------------------------------------------------------------------------


def test_sealed_files_need_the_right_passphrase(passport, tmp_path):
    path = tmp_path / "p"
    passport.save(path, "right")
    with pytest.raises(WrongPassphrase, match="is sealed"):
        Passport.load(path)
    for wrong in ("Right", "right ", "r"):
        with pytest.raises(WrongPassphrase, match=str(path)):
            Passport.load(path, wrong)
    for unfit in ("", b"right", "\ud800"):
        with pytest.raises(InvalidArgument):
            Passport.load(path, unfit)


@pytest.mark.parametrize("unfit", ["", b"bytes", "\ud800"])
def test_unfit_passphrases_leave_no_file(passport, tmp_path, unfit):
    with pytest.raises(InvalidArgument):
        passport.save(tmp_path / "p", unfit)
    assert not list(tmp_path.iterdir())


def test_sealed_files_show_nothing(passport, tmp_path):
    passport.save(tmp_path / "p", "pw")
    text = (tmp_path / "p").read_text()
    for shown in ("Acme", "acme", SECRET.hex(), passport.commitment()[:12], "2026"):
        assert shown not in text


def test_accents_are_one_text_however_typed():
    assert unseal(seal(b"x", "caf\u00e9", CHEAP), "cafe\u0301", "p") == b"x"


def test_every_sealing_is_fresh():
    one, two = (json.loads(seal(b"x", "pw", CHEAP)) for _ in range(2))
    assert one["salt"] != two["salt"]
    assert one["nonce"] != two["nonce"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_content_comes_back(content, passphrase):
    assert unseal(seal(content, passphrase, CHEAP), passphrase, "p") == content


SEALED = seal(b'{"content": "of a passport"}', "pw", CHEAP)


def test_every_truncation_is_noticed():
    for length in range(len(SEALED)):
        with pytest.raises(PassportizeError):
            unseal(SEALED[:length], "pw", "p")


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_every_changed_byte_is_noticed(position, change):
    data = bytearray(SEALED)
    data[position] ^= change
    with pytest.raises(PassportizeError):
        unseal(bytes(data), "pw", "p")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, len(SEALED)), st.binary(min_size=1, max_size=3).filter(bytes.strip))
def test_every_inserted_byte_is_noticed(position, extra):
    with pytest.raises(PassportizeError):
        unseal(SEALED[:position] + extra + SEALED[position:], "pw", "p")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_passport_files_never_give_another_passport(tmp_path_factory, data):
    passphrase = data.draw(st.sampled_from([None, "pw"]))
    original = Passport.generate("Acme", date="2026-11-23", secret=SECRET)
    path = tmp_path_factory.getbasetemp() / f"damaged-{passphrase}"
    original.save(path, passphrase, overwrite=True)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = Passport.load(path, passphrase)
    except PassportizeError:
        return
    # Nothing but white space or the case of a hex digit of a plain file may change unnoticed.
    assert passphrase is None
    assert loaded == original


def test_the_tag_guards_against_those_who_mend_the_checksum():
    one, two = SEALED, seal(b"other", "pw", CHEAP)
    for field in ("salt", "nonce", "ciphertext", "n", "r", "p"):
        value = {"n": 4, "r": 4, "p": 2}.get(field, json.loads(two)[field])
        with pytest.raises(WrongPassphrase):
            unseal(resealed(one, **{field: value}), "pw", "p")
    assert unseal(resealed(one), "pw", "p") == b'{"content": "of a passport"}'


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2**40},
        {"n": 2**19, "r": 16},
        {"n": 2**16, "p": 10**9},
        {"r": 2**30},
        {"n": 3},
        {"n": 0},
        {"n": -2},
        {"n": 2.0},
        {"n": "2"},
        {"n": True},
        {"p": 0},
        {"cipher": "none"},
        {"kdf": "md5"},
        {"salt": ""},
        {"salt": 5},
        {"nonce": "00" * 11},
        {"nonce": "AA" * 12},
        {"ciphertext": ""},
        {"ciphertext": "AAA"},
        {"ciphertext": None},
        {"version": 0},
        {"surplus": 1},
    ],
)
def test_hostile_headers_are_refused_at_no_cost(changes):
    with pytest.raises(PassportizeError):
        unseal(resealed(SEALED, **changes), "pw", "p")


def test_known_answer():
    """A file sealed by version 1 must open for ever."""
    data = (
        b'{"cipher":"chacha20-poly1305","ciphertext":"SwlPgHfn6W4d3nNteeSyyxyqj0Hp54GFI7onJQ==",'
        b'"format":"passportize-sealed","kdf":"scrypt","n":16,"nonce":"000102030405060708090a0b","p":1,"r":8,'
        b'"salt":"000102030405060708090a0b0c0d0e0f","sha256":"c666fb87af2eae3fa0084aa284f5e182cb460b8a9f84081b0eaec6469e75ddd0","version":1}'
    )
    assert unseal(data, "correct horse battery staple", "p") == b"known answer"


def test_default_cost(monkeypatch):
    monkeypatch.undo()
    assert ScryptCost() == ScryptCost(n=2**17, r=8, p=1)
    data = seal(b"x", "pw")
    assert unseal(data, "pw", "p") == b"x"


# --- atomic writing ------------------------------------------------------------------------------


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "claim"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError):
        write_atomically(path, b"three", overwrite=False)
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_write_atomically_obeys_mode_and_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "open", b"x")
        write_atomically(tmp_path / "closed", b"x", 0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o600


@pytest.mark.parametrize("stage", ["fsync", "replace", "link"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, stage, failure):
    path = tmp_path / "claim"
    overwrite = stage != "link"
    if overwrite:
        path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise failure

    if stage == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    else:
        monkeypatch.setattr(os, stage, fail)
        # Where links do not work, renaming is the way out: let that fail too.
        if stage == "link":
            monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(type(failure)):
        write_atomically(path, b"new", overwrite=overwrite)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["claim"] if overwrite else [])
    assert not overwrite or path.read_bytes() == b"old"


def test_without_hard_links_a_rename_does(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write_atomically(tmp_path / "claim", b"new", overwrite=False)
    assert (tmp_path / "claim").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "p"
    sync = os.fsync

    def sync_and_interfere(descriptor):
        path.write_bytes(b"theirs")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_and_interfere)
    with pytest.raises(PassportFileError, match="exists already"):
        write_atomically(path, b"ours", overwrite=False, error=PassportFileError)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_are_translated_where_asked(tmp_path):
    with pytest.raises(PassportFileError, match="create the folder first"):
        write_atomically(tmp_path / "no" / "p", b"x", error=PassportFileError)
    with pytest.raises(PassportFileError, match="name of a file"):
        write_atomically(tmp_path, b"x", error=PassportFileError)
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "p", b"x")
