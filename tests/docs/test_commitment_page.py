"""docs/commitment.md as it stands: its commands run, with an authority of the tests' own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import passportize as pp
from passportize.cli.application import application
from passportize.release.checkpoint import save_weights
from tests.support import ROOT
from tests.support.time_stamping_authority import NOON, Authority

AUTHORITY = Authority()
TOOLS = ("bash", "jq", "xxd", "base64", "openssl", "cmp", "sha256sum")


def blocks(kind: str) -> list[str]:
    text = (ROOT / "docs" / "commitment.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(commands: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", "set -euo pipefail\n" + commands]
    return subprocess.run(command, capture_output=True, text=True)


def call(line: str) -> str:
    """One command of passportize, in this process; curl reaches the tests' own authority."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "curl":
        stamped = Path("acme.commitment.json").read_bytes()
        Path(arguments[-1]).write_bytes(AUTHORITY.response(stamped))
        return ""
    assert program == "passportize"
    result = CliRunner().invoke(application(), arguments)
    assert result.exit_code == 0, result.output + result.stderr
    return result.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    passport = pp.Passport.generate("Acme", date="2026-11-28", secret=bytes(range(32)))
    passport.save("acme.passport")
    pp.passportize(model, passport, example_inputs=torch.zeros(2, 1, 8, 8))
    pp.embed_signature(model)
    pp.save_claim(model, "acme.claim.safetensors")
    pp.unpassportize(model)
    save_weights("released.safetensors", model.state_dict())
    Path("tsa-roots.pem").write_bytes(AUTHORITY.roots_pem())
    return tmp_path


def test_in_python(folder):
    first, second = blocks("python")
    names: dict = {"pp": pp, "Path": Path, "passport": pp.Passport.load("acme.passport")}
    before, ask, after = first.partition("...  # send it, and get acme.tsr\n")
    assert ask
    exec(before, names)
    assert Path("acme.tsq").stat().st_size
    Path("acme.tsr").write_bytes(AUTHORITY.response(names["commitment"].to_bytes()))
    exec(after, names)
    assert names["opened"].timestamp.time == NOON
    names["claim"] = pp.load_claim("acme.claim.safetensors")
    exec(second, names)
    assert names["party"].commitment.shown == ("passport", "claim")


def test_on_the_command_line_and_by_hand(folder):
    _, making, opening, by_hand = blocks("sh")
    lines = (making + opening).replace("\\\n", "").splitlines()
    shown = "".join(call(line) for line in lines)
    assert shown.count("on the word of CN=Test TSA") == 2 and "HOLDS" in shown
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    # The certificate of the tests is valid around the timestamp, not for ever.
    at = f"-CAfile tsa-roots.pem -attime {int(NOON.timestamp())}"
    by_hand = by_hand.replace("-CAfile tsa-roots.pem", at)
    done = run(by_hand)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Signature Verified Successfully" in done.stdout
    assert "Time stamp: Jan 31 12:00:00 2026 GMT" in done.stdout
    # Every check fails on another file.
    for command in (line for line in by_hand.splitlines() if "sha256sum" in line):
        Path("released.safetensors").write_bytes(b"")
        assert run(command).returncode != 0
    text = Path("acme.commitment.json").read_text()
    Path("acme.commitment.json").write_text(text.replace('"date":"2', '"date":"1'))
    assert run("\n".join(by_hand.splitlines()[1:7])).returncode != 0
