"""A checkout without symbolic links says what to do; built from it, the package is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture
def without_links(tmp_path: Path) -> Path:
    """As git writes it with core.symlinks=false: the link is a file that holds its target."""
    link = ROOT / "passportize" / "adapters"
    skipped = shutil.ignore_patterns("__pycache__", "adapters")
    shutil.copytree(ROOT / "passportize", tmp_path / "passportize", ignore=skipped)
    shutil.copytree(ROOT / "adapters", tmp_path / "adapters")
    (tmp_path / "passportize" / "adapters").write_text(str(link.readlink()))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_it_says_what_to_do(without_links: Path) -> None:
    done = run(without_links, "-c", "import passportize")
    assert done.returncode == 1
    assert "git config core.symlinks true" in done.stderr and "pip install ." in done.stderr


@pytest.mark.slow
def test_what_is_built_from_it_is_whole(without_links: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    build = "import setuptools; setuptools.setup(script_args=['-q', 'build_py', '-d', 'built'])"
    done = run(without_links, "-c", build)
    assert done.returncode == 0, done.stderr
    built = {path.name for path in (without_links / "built/passportize/adapters").glob("*.py")}
    assert built == {path.name for path in (ROOT / "adapters").glob("*.py")}
    done = run(without_links / "built", "-c", "import passportize.suspects, passportize.adapters")
    assert done.returncode == 0, done.stderr
