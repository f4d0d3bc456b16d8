"""commit and open on the command line: the way from the passport to a checked date."""

from __future__ import annotations

import json

import pytest
import torch
from asn1crypto import tsp
from torch import nn
from typer.testing import CliRunner

import passportize as pp
from passportize.cli.application import application
from passportize.cli.inputs import PASSPHRASE
from passportize.passport.passport import Passport
from passportize.release.checkpoint import save_weights
from tests.support.time_stamping_authority import Authority, refusal

SECRET = bytes(range(32))
AUTHORITY = Authority()
FILE = "acme.commitment.json"
SHOWN = ("--passport", "acme.passport", "--claim", "acme.claim", "--weights", "released.pth")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Passport, claim and weights; a stranger's passport; the roots of an authority."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    passport = Passport.generate("Acme", date="2026-01-31", secret=SECRET)
    passport.save(folder / "acme.passport")
    passport.save(folder / "sealed.passport", "open sesame")
    Passport.generate("Mallory", date="2026-11-28", secret=b"m" * 32).save(
        folder / "mallory.passport"
    )
    pp.passportize(model, passport, example_inputs=torch.zeros(2, 1, 8, 8))
    pp.embed_signature(model)
    pp.save_claim(model, folder / "acme.claim")
    pp.unpassportize(model)
    torch.save(model.state_dict(), folder / "released.pth")
    save_weights(folder / "released.safetensors", model.state_dict())
    (folder / "roots.pem").write_bytes(AUTHORITY.roots_pem())
    (folder / "other.pem").write_bytes(Authority("Other").roots_pem())
    return folder


@pytest.fixture
def folder(released, tmp_path, monkeypatch):
    """A fresh copy to work in."""
    for file in released.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(file.stat().st_mode & 0o777)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSPHRASE, raising=False)
    return tmp_path


@pytest.fixture
def call(folder):
    def run(*arguments: str):
        result = CliRunner().invoke(application(), list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert SECRET.hex() not in result.output + result.stderr
        assert "open sesame" not in result.output + result.stderr
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def stamped(call, folder):
    """A commitment with a timestamp, made as the page says."""
    assert call("commit", *SHOWN, "-o", FILE, "--timestamp-request", "acme.tsq")[0] == 0
    (folder / "acme.tsr").write_bytes(answer(folder))
    code, text, _ = call(
        "commit", "-o", FILE, "--add-token", "acme.tsr", "--tsa-roots", "roots.pem"
    )
    assert code == 0 and "on the word of CN=Test TSA" in text
    return folder / FILE


def answer(folder):
    """What the authority makes of the request alone."""
    request = tsp.TimeStampReq.load((folder / "acme.tsq").read_bytes()).native
    imprint = request["message_imprint"]
    assert imprint["hash_algorithm"]["algorithm"] == "sha256"
    return AUTHORITY.response(b"", imprint=imprint["hashed_message"])


def test_from_the_passport_to_a_date(call, stamped):
    code, text, _ = call("open", FILE, *SHOWN, "--tsa-roots", "roots.pem")
    assert code == 0 and "2026-01-31T12:00:00Z" in text and "HOLDS" in text
    assert "on the owner's word alone" in text
    code, text, _ = call("open", FILE, *SHOWN, "--tsa-roots", "roots.pem", "--json")
    record = json.loads(text)
    assert code == 0 and record["accepted"] is True
    assert record["shown"] == ["passport", "claim", "weights"]
    assert record["timestamp"]["authority"] == "CN=Test TSA"


def test_the_published_file_says_nothing_of_the_owner(call, stamped, folder):
    text = stamped.read_text()
    assert "Acme" not in text and SECRET.hex() not in text
    assert (folder / "acme.passport").stat().st_mode & 0o777 == 0o600


def test_a_sealed_passport(call, folder, monkeypatch):
    (folder / "words").write_text("open sesame\n")
    sealed = ("--passport", "sealed.passport", *SHOWN[2:])
    assert call("commit", *sealed, "-o", FILE)[0] == 2
    words = ("--passphrase-file", "words")
    assert call("commit", *sealed, "-o", FILE, *words)[0] == 0
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    assert call("open", FILE, *sealed)[0] == 0


def test_commit_reports(call, folder):
    code, text, _ = call("commit", *SHOWN, "-o", FILE, "--json")
    record = json.loads(text)
    claim = pp.load_claim(folder / "acme.claim")
    assert code == 0 and record["file"] == FILE and record["request"] is None
    assert record["claim"] == claim.digest() and record["passport"] == claim.commitment
    assert record["weights"] == claim.weights and len(record["weights_file"]) == 64
    assert record["timestamp"] is None and record["timestamp_unchecked"] is False
    code, text, _ = call("commit", *SHOWN, "-o", "second.json")
    assert code == 0 and "on your word alone" in text and "have it timestamped" in text


def test_the_request_can_be_had_later(call, folder):
    assert call("commit", *SHOWN, "-o", FILE)[0] == 0
    before = (folder / FILE).read_bytes()
    code, text, _ = call("commit", "-o", FILE, "--timestamp-request", "acme.tsq")
    assert code == 0 and "send acme.tsq to an authority" in text
    assert (folder / FILE).read_bytes() == before
    (folder / "acme.tsr").write_bytes(answer(folder))
    code, text, _ = call("commit", "-o", FILE, "--add-token", "acme.tsr")
    assert code == 0 and "by whom it is was not checked" in text
    code, text, _ = call("open", FILE)
    assert code == 0 and "NOT CHECKED" in text


def test_no_commitment_is_replaced(call, folder):
    assert call("commit", *SHOWN, "-o", FILE)[0] == 0
    before = (folder / FILE).read_bytes()
    code, _, errors = call("commit", *SHOWN, "-o", FILE)
    assert code == 2 and "exists already" in errors and (folder / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (("--passport", "mallory.passport"), "CommitmentMismatch", "the passport of Mallory"),
        (("--weights", "released.safetensors"), "CommitmentMismatch", "written anew"),
        (("--tsa-roots", "other.pem"), "TimestampRefused", "no given root certificate"),
    ],
)
def test_open_refuses(call, stamped, arguments, error, reason):
    code, text, errors = call("open", FILE, *arguments, "--json")
    record = json.loads(text)
    assert code == 1 and record["accepted"] is False and record["error"] == error
    assert reason in record["message"] and errors == ""
    code, text, _ = call("open", FILE, *arguments)
    assert code == 1 and "REFUSED" in text and reason in text


def test_open_refuses_a_changed_file(call, stamped):
    stamped.write_bytes(stamped.read_bytes().replace(b'"date":"2', b'"date":"1'))
    code, text, _ = call("open", FILE, "--json")
    assert code == 1 and json.loads(text)["error"] == "BadSignature"


def test_add_token_refuses(call, stamped, folder):
    assert call("commit", *SHOWN[:4], "-o", "second.json")[0] == 0
    before = (folder / "second.json").read_bytes()
    (folder / "no.tsr").write_bytes(refusal("busy"))
    (folder / "page.tsr").write_text("<html>")
    for response in ("acme.tsr", "no.tsr", "page.tsr"):
        code, text, _ = call("commit", "-o", "second.json", "--add-token", response, "--json")
        assert code == 1 and json.loads(text)["error"] == "TimestampRefused"
    assert call("commit", "-o", FILE, "--add-token", "acme.tsr")[0] == 1
    (folder / "good.tsr").write_bytes(AUTHORITY.response(before))
    unknown = ("--add-token", "good.tsr", "--tsa-roots", "other.pem")
    assert call("commit", "-o", "second.json", *unknown)[0] == 1
    assert (folder / "second.json").read_bytes() == before


def test_weights_of_another_claim_are_refused(call, folder):
    other = nn.Sequential(nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    torch.save(other.state_dict(), folder / "other.pth")
    code, text, _ = call("commit", *SHOWN[:4], "--weights", "other.pth", "-o", FILE, "--json")
    assert code == 1 and json.loads(text)["error"] == "CommitmentMismatch"
    assert not (folder / FILE).exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("commit", "-o", FILE), "InvalidArgument"),
        (("commit", "-o", FILE, *SHOWN[:2]), "InvalidArgument"),
        (("commit", "-o", FILE, *SHOWN[2:4]), "InvalidArgument"),
        (("commit", "-o", FILE, *SHOWN[4:]), "InvalidArgument"),
        (("commit", "-o", FILE, *SHOWN, "--add-token", "roots.pem"), "InvalidArgument"),
        (("commit", "-o", FILE, *SHOWN, "--tsa-roots", "roots.pem"), "InvalidArgument"),
        (("commit", "-o", FILE, "--add-token", "missing.tsr"), "InvalidArgument"),
        (("commit", "-o", "missing.json", "--add-token", "roots.pem"), "CommitmentFileError"),
        (("commit", "-o", "missing.json", "--timestamp-request", "x"), "CommitmentFileError"),
        (("commit", "-o", "no/folder.json", *SHOWN), "CommitmentFileError"),
        (
            ("commit", "-o", FILE, "--passport", "mallory.passport", "--claim", "acme.claim"),
            "WrongPassport",
        ),
        (("open", "missing.json"), "CommitmentFileError"),
        (("open", "acme.passport"), "CommitmentFileError"),
        (("open", "released.pth"), "CommitmentFileError"),
        (("open", "."), "CommitmentFileError"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(call, arguments, error):
    code, text, _ = call(*arguments, "--json")
    assert code == 2 and json.loads(text)["error"] == error
    code, text, errors = call(*arguments)
    assert code == 2 and text == "" and "error:" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        (FILE, "--claim", "released.pth"),
        (FILE, "--weights", "missing.pth"),
        (FILE, "--tsa-roots", "acme.claim"),
        (FILE, "--passport", "missing.passport"),
    ],
)
def test_open_cannot_read_what_is_shown(call, stamped, arguments):
    assert call("open", *arguments)[0] == 2


@pytest.mark.parametrize("module", ["rfc8785", "rfc3161_client"])
def test_without_the_extra(call, monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    code, _, errors = call("commit", *SHOWN, "-o", FILE, "--timestamp-request", "acme.tsq")
    assert code == 2 and "pip install 'passportize[timestamp]'" in errors
