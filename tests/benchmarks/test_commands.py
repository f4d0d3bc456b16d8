"""Every benchmark imports, and what pages and results name as a command can be started."""

from __future__ import annotations

import importlib
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest

import benchmarks
from tests.support import ROOT

pytest.importorskip("torch_geometric")
pytest.importorskip("torchvision")

MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.ispkg
]
STARTED_BY_OTHERS = {
    "benchmarks.common.ddp_on_cpu",
    "benchmarks.suspects.litert_convert",
    "benchmarks.train_scripts.checks",
}
ELSEWHERE = {"benchmarks.suspects.litert_convert"}
"""Run by a Python of its own, with packages that this one does not have."""


def commands(path: Path) -> list[str]:
    """Modules that a file names as commands."""
    return re.findall(r"python -m (benchmarks\.[a-z_.]*[a-z_])", path.read_text(encoding="utf-8"))


COMMANDS = sorted(set(commands(ROOT / "benchmarks" / "README.md")))


@pytest.mark.parametrize("module", sorted(set(MODULES) - ELSEWHERE))
def test_it_imports(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_answers_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")


def test_the_table_has_every_command() -> None:
    with_main = {
        module
        for module in MODULES
        if '__name__ == "__main__"' in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    }
    assert with_main - STARTED_BY_OTHERS == set(COMMANDS)


def test_other_pages_and_results_name_commands_that_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    results = ROOT / "benchmarks" / "results"
    sources = (ROOT / "benchmarks").rglob("*.py")
    named = {
        module: path
        for path in (*pages, *results.glob("*.md"), *results.glob("*.json"), *sources)
        for module in commands(path)
    }
    assert set(COMMANDS) <= set(named)
    assert set(named) <= set(MODULES), named
