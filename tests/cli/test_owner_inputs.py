"""Inputs kept before a training, named in it, and used at the release and on the day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("timm")
import timm

import passportize as pp
from passportize.cli.application import application
from passportize.integrations.timm.options import parse_options
from passportize.release.inputs_file import inputs_digest
from tests.support.striped_pictures import write_pictures

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
RUNNER = CliRunner()
MODEL = ("--num-classes", "4", "--arg", "pretrained=False")


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(application(), [str(each) for each in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept inputs, and the checkpoint of a training that named them."""
    folder = tmp_path_factory.mktemp("inputs")
    write_pictures(folder / "data", 4, 1)
    kept = folder / "acme.inputs"
    code, text = run(
        *(
            "inputs",
            "test_resnet",
            "--data",
            folder / "data" / "train",
            "--images",
            12,
            "--batch-size",
            6,
        ),
        *("--img-size", 64, "-o", kept, *MODEL, "--json"),
    )
    assert code == 0, text
    digest = json.loads(text)["digest"]
    batches = pp.load_inputs(kept)
    assert inputs_digest(batches) == digest and [len(batch) for batch in batches] == [6, 6]
    passport = pp.Passport.generate("Acme", date="2026-11-28", secret=bytes(range(32)))
    passport.save(folder / "acme.passport")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    model = pp.passportize(model, passport, config=pp.PassportConfig.signature(inputs=digest))
    pp.embed_signature(model)
    torch.save({"state_dict": model.state_dict(), "arch": "test_resnet"}, folder / "last.pth")
    return folder


def release(out: str, *more: object) -> tuple[int, str]:
    return run(
        *("release", "last.pth", "--passport", "acme.passport", "-o", out, "--no-commit"),
        *("--model", "test_resnet", *MODEL, "--preset", "signature", *more),
    )


def test_the_mark_is_put_in_once_more_and_the_suspect_is_looked_at(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for out in ("plain", "deeper"):
        digest = inputs_digest(pp.load_inputs("acme.inputs"))
        named = ("--inputs", "acme.inputs") if out == "deeper" else ("--set", f"inputs={digest}")
        code, text = release(out, *named)
        assert code == 0, text
        code, text = run(
            *("verify", f"{out}/2-publish/model.safetensors", "--passport", "acme.passport"),
            *("--claim", f"{out}/keep/claim.safetensors", "--inputs", "acme.inputs", "--json"),
            *("--model", "test_resnet", *MODEL),
        )
        found = json.loads(text)
        assert code == 0 and found["matched"] == found["total"]
    before, after = (
        pp.host_state_dict(torch.load("last.pth")["state_dict"]),
        dict(_weights("deeper/2-publish/model.safetensors")),
    )
    assert not torch.equal(before["layer2.0.conv1.weight"], after["layer2.0.conv1.weight"])
    assert torch.equal(before["fc.weight"], after["fc.weight"])


def _weights(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_other_inputs_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    pp.save_inputs([torch.zeros(2, 3, 64, 64)], "other.inputs", overwrite=True)
    digest = inputs_digest(pp.load_inputs("acme.inputs"))
    code, text = release("other", "--set", f"inputs={digest}", "--inputs", "other.inputs")
    assert code == 2 and "not the inputs that the claim names" in text
    code, text = release("other", "--inputs", "acme.inputs", "--claim", "some.claim")
    assert code == 2 and "made anew" in text
    code, text = run("inputs", "test_resnet", "--data", "data/train", "-o", "acme.inputs", *MODEL)
    assert code == 2 and "exists already" in text


def test_between_two_parties_they_need_a_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    party = ("passport", "acme.passport"), ("claim", "none"), ("weights", "last.pth")
    given = [
        word
        for side in ("first", "second")
        for name, value in party
        for word in (f"--{side}-{name}", value)
    ]
    code, text = run("arbitrate", *given, "--second-inputs", "acme.inputs")
    assert code == 2 and "--second-inputs need --model" in text


def test_the_training_names_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("train.py").write_text("pass\n", encoding="utf-8")
    options = parse_options(["--passport", "acme.passport", "--inputs", "acme.inputs", "train.py"])
    assert options.config.inputs == inputs_digest(pp.load_inputs("acme.inputs"))
    assert parse_options(["--passport", "acme.passport", "train.py"]).config.inputs == ""
