"""0 accepted, 1 refused, 2 everything else, whatever is raised and by whom; JSON always."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from passportize.cli.application import application
from tests.support import ROOT

OWN = """
import sys
import typer

def leaves():
    sys.exit(0)

def exits():
    raise typer.Exit(0)

def interrupted():
    raise KeyboardInterrupt

def deep():
    return deep()

def pairs():
    yield from ()
    raise SystemExit(0)
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ending", None)
    monkeypatch.delitem(sys.modules, "ending")

    def run(*arguments: str):
        result = CliRunner().invoke(application(), list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.mark.parametrize("name", ["leaves", "exits", "interrupted", "deep"])
def test_code_of_the_users_cannot_end_a_command_well(call, name):
    code, text, _ = call("plan", f"ending:{name}", "--json")
    assert code == 2 and json.loads(text)["message"]
    code, text, errors = call("plan", f"ending:{name}")
    assert code == 2 and not text and "error:" in errors


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("x"),
        MemoryError(),
        SystemExit(0),
        SystemExit(1),
        typer.Exit(1),
        typer.Abort(),
        KeyboardInterrupt(),
        BrokenPipeError(),
        GeneratorExit(),
    ],
    ids=lambda error: f"{type(error).__name__}{error}",
)
def test_whatever_is_raised_inside(call, monkeypatch, raised):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("passportize.cli.passports.load_claim", fail)
    monkeypatch.setattr("passportize.cli.passports._is_claim", lambda file: True)
    code, text, _ = call("inspect", "x", "--json")
    assert code == 2 and json.loads(text)["error"] == type(raised).__name__
    assert call("inspect", "x")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], "suspect"),
        (["verify", "x"], "--passport"),
        (["verfy"], "did you mean 'verify'"),
        (["plan", "resnet18", "--wher", "x"], "--where"),
        (["verify", "x", "--passport", "y", "--batch-size", "many"], "--batch-size"),
        ([], "command"),
    ],
)
def test_a_command_line_that_makes_no_sense(call, arguments, words):
    code, text, errors = call(*arguments)
    assert code == 2 and words in (text + errors).lower()
    code, text, _ = call(*arguments, "--json")
    record = json.loads(text)
    assert code == 2 and record["error"] == "UsageError" and record["message"]


def test_help_is_there_in_both_spellings(call):
    for command in ([], ["verify"], ["plan"], ["keygen"], ["commit"]):
        for option in ("-h", "--help"):
            code, text, _ = call(*command, option)
            assert code == 0 and "Usage" in text
    assert "Exit codes" in call("--help")[1] and "hf-hub" in call("-h")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_completed(shell):
    variable = {"_PASSPORTIZE_COMPLETE": f"complete_{shell}", "COMP_CWORD": "1"}
    words = dict.fromkeys(("COMP_WORDS", "_TYPER_COMPLETE_ARGS"), "passportize ver")
    words["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = CliRunner().invoke(application(), env={**variable, **words}, prog_name="passportize")
    assert done.exit_code == 0 and "verify" in done.stdout


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "passportize", *arguments]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_result_that_was_not_written_is_no_success():
    with Path("/dev/full").open("w") as full:
        done = run("--version", stdout=full)
    assert done.returncode == 2 and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_is_gone_is_no_success():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("--version", stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == 2 and "Traceback" not in done.stderr
