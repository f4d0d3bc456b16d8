"""The examples run to their end."""

from __future__ import annotations

import runpy
import stat
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

EXAMPLES = ROOT / "examples"


def test_pointnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = EXAMPLES / "pointnet.py"
    arguments = [str(script), "--epochs", "1", "--points", "32", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "signature:" in out and "triggers answered as trained in" in out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "example.passport",
        "example.claim.safetensors",
        "released.pt",
        "released.png",
    }
    mode = (tmp_path / "out" / "example.passport").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
