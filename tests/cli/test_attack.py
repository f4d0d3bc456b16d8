"""Attacks on the command line: what is printed, and how the command ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from passportize.cli.application import application
from passportize.release.checkpoint import load_weights, save_weights
from passportize.release.claim_file import write_claim
from tests.support.bench import OWNER, released

RUNNER = CliRunner()
DATA = ("--data", "tests.support.bench:data_of_test", "--model", "tests.support.bench:BenchNet")


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(application(), [str(each) for each in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    release = released("signature")
    save_weights(folder / "released.safetensors", release.model.state_dict())
    write_claim(release.claim, folder / "acme.claim.safetensors")
    OWNER.save(folder / "acme.passport")
    return folder


def test_the_list() -> None:
    code, text = run("attack", "--list")
    assert code == 0 and "distil" in text and "removes every mark that lies in weights" in text
    code, text = run("attack", "--list", "--json")
    names = {each["name"]: each for each in json.loads(text)["attacks"]}
    assert code == 0 and names["prune"]["options"] == {"share": 0.5, "scope": "global"}


def test_an_attack_and_what_is_left(place: Path) -> None:
    weights, own = place / "released.safetensors", ("--passport", place / "acme.passport")
    own = (*own, "--claim", place / "acme.claim.safetensors")
    out = place / "pruned.safetensors"
    code, text = run("attack", "prune", weights, *DATA, *own, "--out", out, "--option", "share=0.3")
    assert code == 0 and "verdict:   signature holds" in text
    after = load_weights(out)
    assert float((after["conv3.weight"] == 0).float().mean()) > 0.1
    code, text = run("attack", "closed-form", weights, *DATA, *own, "--json")
    record = json.loads(text)
    assert code == 0 and record["scheme"] == "signature" and record["broken"] is False
    assert record["forged"]["accepted"] is False and record["owner"]["accepted"] is True
    # Another scheme's weights fall to it.
    code, text = run("attack", "closed-form", weights, *DATA, *own, "--scheme", "paper")
    assert code == 1 and "paper is broken" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attack",), "give the name of an attack"),
        (("attack", "prun", "W"), "did you mean prune"),
        (("attack", "prune", "W", "--option", "size=3"), "this attack has share, scope"),
        (("attack", "prune", "W", "--option", "share=much"), "give a float, as 0.5 is"),
        (("attack", "prune", "W", "--passport", "P"), "--passport and --claim go together"),
        (("attack", "prune", "W", "--leaked"), "--leaked needs"),
        (("attack", "fine-tune", "W", *DATA[2:]), "fine-tune needs data="),
    ],
)
def test_errors_are_one_message_and_exit_code_2(place: Path, arguments, message) -> None:
    names = {"W": place / "released.safetensors", "P": place / "acme.passport"}
    code, text = run(*(names.get(each, each) for each in arguments))
    assert code == 2 and message in " ".join(text.split())
