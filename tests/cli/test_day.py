"""The owner's and the judge's working day, with commands alone: from a key to an arbitration."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("timm")
pytest.importorskip("rfc3161_client")
import timm

import passportize as pp
from passportize.cli.application import application
from passportize.cli.inputs import PASSPHRASE
from passportize.release.checkpoint import load_weights, save_weights
from tests.support import ROOT
from tests.support.striped_pictures import write_pictures
from tests.support.time_stamping_authority import Authority

SCRIPT = str(ROOT / "tests/integrations/train_scripts/train_on_pictures.py")
WORDS = "correct horse battery staple"
AUTHORITY = Authority()
TRAINING = (
    "--data-dir",
    "data",
    "--model",
    "test_resnet",
    "--num-classes",
    "4",
    "--img-size",
    "48",
)

pytestmark = [
    # timm leaves the files of its dataset open until they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A folder in which everything up to the release has been done, and how to go on."""
    folder = tmp_path_factory.mktemp("day")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(PASSPHRASE, raising=False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        write_pictures(folder / "data")
        patch.setattr(sys, "argv", [SCRIPT, *TRAINING, "--output", "before", "--epochs", "1"])
        runpy.run_path(SCRIPT, run_name="__main__")
        Path("words").write_text(WORDS + "\n")
        said = {}

        def call(*arguments: str, code: int = 0) -> str:
            result = CliRunner().invoke(application(), list(arguments))
            assert result.exit_code == code, (arguments, result.output, result.stderr)
            assert WORDS not in result.output + result.stderr
            return result.stdout

        sealed = ("--passphrase-file", "words")
        call(
            "keygen", "Acme Vision", "--contact", "legal@acme.example", "-o", "a.passport", *sealed
        )
        said["plan"] = call("plan", "test_resnet", "--num-classes", "4")
        patch.setenv(PASSPHRASE, WORDS)
        call(
            *("timm-train", "--passport", "a.passport", "--claim", "a.claim", SCRIPT, *TRAINING),
            *("--initial-checkpoint", "before/model_best.pth.tar", "--output", "run"),
            *("--epochs", "20", "--model-ema"),
        )
        best = "run/model_best.pth.tar"
        said["release"] = call(
            *("release", best, "--passport", "a.passport", "--claim", "a.claim", *sealed),
            *("--data", "data/val", "-o", "release", "--json"),
        )
        request = Path("release/1-commit/commitment.json")
        Path("answer.tsr").write_bytes(AUTHORITY.response(request.read_bytes()))
        Path("roots.pem").write_bytes(AUTHORITY.roots_pem())
        call("commit", "-o", str(request), "--add-token", "answer.tsr", "--tsa-roots", "roots.pem")
        yield folder, call, said, sealed
        torch.set_num_threads(threads)


OWNER = ("--passport", "a.passport", "--claim", "release/keep/claim.safetensors")


def tampered(name: str) -> str:
    """A thief's work: noise, half of the small weights gone, names of another framework."""
    torch.manual_seed(0)
    weights = load_weights("release/2-publish/model.safetensors")
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor += 0.05 * tensor.std() * torch.randn_like(tensor)
            tensor[tensor.abs() < tensor.abs().median() / 4] = 0
    save_weights(name, {f"backbone.{key}": value for key, value in weights.items()})
    return name


def test_the_release(day):
    _, call, said, _ = day
    assert "bits" in said["plan"]
    made = json.loads(said["release"])
    assert made["averaged"] and made["fidelity"] is True and made["public_accuracy"] > 90
    assert made["preprocessing"]["input_size"] == [3, 48, 48]
    files = {
        *("1-commit/commitment.json", "1-commit/timestamp-request.tsq", "2-publish/README.md"),
        *("2-publish/SHA256SUMS", "2-publish/config.json", "2-publish/model.safetensors"),
        *("SUMMARY.md", "keep/claim.safetensors", "keep/release.json"),
    }
    assert set(made["files"]) == files
    assert pp.load_claim("release/keep/claim.safetensors").digest() == made["claim"]
    summary = Path("release/SUMMARY.md").read_text()
    for text in (made["claim"], made["weights_file"], made["passport"], "Keep secret", "verify"):
        assert text in summary
    assert call("audit", "release/2-publish").endswith("clean: 4 files\n")
    assert "a claim" in call("audit", "release", code=1)
    assert "private branch" in call("audit", "run/model_best.pth.tar", code=1)
    assert "a passport" in call("audit", "a.passport", code=1)
    for file in Path("release/2-publish").iterdir():
        assert b"passport" not in file.read_bytes(), file.name
    assert made["claim"] not in Path("release/2-publish/README.md").read_text()


def test_the_card_of_a_release_says_what_the_owner_wants_to_say(day, tmp_path):
    _, call, _, sealed = day
    line = ("release", "run/model_best.pth.tar", "--passport", "a.passport", *sealed, "--json")
    out = tmp_path / "said"
    made = json.loads(call(*line, "-o", str(out), "--no-commit", "--contact", "ask@acme.example"))
    card = (out / "2-publish/README.md").read_text()
    assert made["claim"] in card and "ask@acme.example" in card and "passport" not in card
    assert call("audit", str(out / "2-publish")).endswith("clean: 4 files\n")


def test_what_is_published_is_an_ordinary_model_of_timm(day):
    model = timm.create_model("local-dir:release/2-publish", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    assert model.num_classes == 4 and settings["input_size"] == (3, 48, 48)
    assert settings["crop_pct"] == model.pretrained_cfg["crop_pct"]
    claim = pp.load_claim("release/keep/claim.safetensors")
    passport = pp.Passport.load("a.passport", WORDS)
    assert pp.verify(model, passport, claim).same_weights


def test_the_owners_own_release_passes_whatever_the_default_size(day):
    """test_resnet's own size is 160: a model of 48 pixels is near chance there."""
    _, call, _, sealed = day
    given = ("--model", "test_resnet", "--num-classes", "4", "--data", "data/val", "--json")
    line = ("verify", "release/2-publish/model.safetensors", *OWNER, *given, *sealed)
    verdict = json.loads(call(*line))
    assert verdict["fidelity"] is True and verdict["samples"] == 48
    assert "3 x 48 x 48" in verdict["preprocessing"]
    assert any("claimant's choice" in note for note in verdict["notes"])
    other = json.loads(call(*line, "--img-size", "160", "--mean", "0.9,0.1,0.9"))
    assert other["strength"] == verdict["strength"]
    assert other["public_accuracy"] < verdict["public_accuracy"]


def test_a_copy_turns_up(day, tmp_path):
    _, call, _, sealed = day
    copy = tampered("copy.safetensors")
    made = json.loads(
        call(
            *("verify", copy, *OWNER, *sealed, "--model", "local-dir:release/2-publish"),
            *("--data", "data/val", "--report", "verdict.html", "--json"),
            *("--commitment", "release/1-commit/commitment.json", "--tsa-roots", "roots.pem"),
        )
    )
    assert made["accepted"] is True and made["same_weights"] is False
    page = Path("verdict.html").read_text()
    for text in ("copy.safetensors", "CN=Test TSA", "--commitment", "48 samples"):
        assert text in page
    assert WORDS not in page


def test_whose_is_it(day):
    _, call, _, _ = day
    copy = tampered("stolen.safetensors")
    plain = {key.removeprefix("backbone."): v for key, v in load_weights(copy).items()}
    torch.save({"state_dict": plain}, "stolen.pth")
    call("keygen", "Mallory", "-o", "m.passport", "--no-passphrase")
    call(
        *("timm-train", "--passport", "m.passport", SCRIPT, *TRAINING, "--epochs", "1"),
        *("--initial-checkpoint", "stolen.pth", "--output", "theirs"),
    )
    call(
        *("release", "theirs/last.pth.tar", "--passport", "m.passport", "-o", "mallory"),
        "--no-commit",
    )
    owner = ("a.passport", "release/keep/claim.safetensors", "release/2-publish/model.safetensors")
    thief = ("m.passport", "mallory/keep/claim.safetensors", "mallory/2-publish/model.safetensors")
    for first, second, code in ((owner, thief, 0), (thief, owner, 1)):
        said = call(
            *("arbitrate", "--first-passport", first[0], "--first-claim", first[1]),
            *("--first-weights", first[2], "--second-passport", second[0]),
            *("--second-claim", second[1], "--second-weights", second[2], "--json"),
            *(f"--{('first', 'second')[code]}-passphrase-file", "words"),
            code=code,
        )
        assert json.loads(said)["owner"] == code


def test_a_stranger_is_refused_and_rubbish_is_not_judged(day):
    _, call, _, sealed = day
    torch.manual_seed(1)
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    save_weights("other.safetensors", weights)
    call("verify", "other.safetensors", *OWNER, *sealed, "--report", "refused.html", code=1)
    save_weights("rubbish.safetensors", {"a": torch.zeros(3)})
    call("verify", "rubbish.safetensors", *OWNER, *sealed, "--report", "open.html", code=2)
    assert "Refused" in Path("refused.html").read_text()
    assert "ould not" in Path("open.html").read_text()


def test_what_cannot_be_released_is_refused_and_leaves_nothing(day):
    _, call, _, sealed = day
    before = sorted(Path().iterdir())
    line = ("release", "run/model_best.pth.tar", "--passport", "a.passport", *sealed, "--json")
    for more, error in (
        (("-o", "release"), "CheckpointError"),
        (("-o", "none/there"), "CheckpointError"),
        (("-o", "new", "--claim", "a.claim", "--no-ema"), "ClaimMismatch"),
        (("-o", "new", "--to", "hf"), "InvalidArgument"),
        (("-o", "new", "--num-classes", "3"), "InvalidArgument"),
        (("-o", "new", "--model", "test_vit"), "CheckpointError"),
        (("-o", "new", "--std", "0"), "InvalidArgument"),
        (("-o", "new", "--contact", "two\nlines"), "InvalidArgument"),
    ):
        assert json.loads(call(*line, *more, code=2))["error"] == error, more
    pp.Passport.generate("Else").save("else.passport")
    other = ("release", "run/last.pth.tar", "--passport", "else.passport", "-o", "new", "--json")
    assert json.loads(call(*other, code=2))["error"] == "WrongPassport"
    plain = ("release", "before/last.pth.tar", "--passport", "a.passport", *sealed, "-o", "new")
    call(*plain, code=2)
    assert sorted(Path().iterdir()) == sorted([*before, Path("else.passport")])


def test_a_claim_on_any_checkpoint(day):
    _, call, _, sealed = day
    line = ("claim", "run/last.pth.tar", "--passport", "a.passport", *sealed)
    made = json.loads(call(*line, "-o", "last.claim", "--no-ema", "--img-size", "32", "--json"))
    assert made["averaged"] is False and made["preprocessing"]["input_size"] == [3, 32, 32]
    assert pp.load_claim("last.claim").digest() == made["digest"]
    assert "digest" in call("inspect", "last.claim")
    call(*line, "-o", "last.claim", code=2)
    # A claim on weights without the signature would prove nothing.
    content = torch.load("run/last.pth.tar", weights_only=False)
    fresh = timm.create_model("test_resnet", num_classes=4).state_dict()
    content["state_dict"].update(fresh)
    torch.save(content, "spoilt.pth.tar")
    spoilt = ("claim", "spoilt.pth.tar", "--passport", "a.passport", *sealed, "--no-ema")
    assert json.loads(call(*spoilt, "-o", "x", "--json", code=2))["error"] == "ClaimError"
    assert not Path("x").exists()
