"""The loop of accelerate in examples/, to its end, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import passportize as pp
from passportize.release.checkpoint import load_weights
from tests.support import ROOT

pytest.importorskip("accelerate")
pytest.importorskip("timm")
pytestmark = pytest.mark.slow


def test_the_example_in_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--master-port", "29519"]
    command += ["--nproc-per-node", "2", str(ROOT / "examples" / "accelerate_loop.py")]
    command += ["--epochs", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of the bits are in" in done.stdout and done.stdout.count("publish before") == 1
    passport = pp.Passport.load(tmp_path / "owner.passport")
    claim = pp.load_claim(tmp_path / "claim.safetensors")
    verdict = pp.verify(tmp_path / "released.safetensors", passport, claim)
    assert verdict.accepted and verdict.same_weights and verdict.matched > 0.98 * verdict.total
    assert not any("passport" in name for name in load_weights(tmp_path / "released.safetensors"))
