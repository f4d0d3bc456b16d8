"""A checker sees the types of the package in a user's program; the packaging command asks
two of them about the installed wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PROGRAM = Path(__file__).with_name("typed_program.py")
WRONG = (
    ("pp.plan(model)", "pp.plan('resnet18')", "arg-type"),
    ("bits: int", "bits: str", "assignment"),
    ("verdict.accepted", "verdict.acceptable", "attr-defined"),
)


@pytest.mark.slow
def test_a_typed_program_and_wrong_ones(tmp_path: Path) -> None:
    """With the project's settings, so that what `make lint` has read is not read again."""
    pytest.importorskip("mypy")
    text = PROGRAM.read_text(encoding="utf-8")
    (tmp_path / "right.py").write_text(text)
    for number, (right, wrong, _) in enumerate(WRONG):
        assert right in text
        (tmp_path / f"wrong_{number}.py").write_text(text.replace(right, wrong))
    command = [sys.executable, "-m", "mypy", *sorted(map(str, tmp_path.glob("*.py")))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not [line for line in errors if "right.py" in line], done.stdout + done.stderr
    for number, (_, _, code) in enumerate(WRONG):
        assert [line for line in errors if f"wrong_{number}.py" in line and f"[{code}]" in line]
