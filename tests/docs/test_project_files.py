"""The files around the code parse, and what they say twice they say alike."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest

import passportize
from tests.support import ROOT

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")

WORKFLOWS = ROOT / ".github" / "workflows"
YAML_FILES = [
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
    *sorted((ROOT / ".github").rglob("*.yml")),
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("tools/*.toml")), ids=lambda path: path.name)
def test_toml_parses(path: Path) -> None:
    assert tomllib.loads(path.read_text(encoding="utf-8"))


def test_the_version_stands_in_the_package_alone(project: dict[str, Any]) -> None:
    version = passportize.__version__
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "passportize.__version__"
    }
    assert str(load(ROOT / "CITATION.cff")["version"]) == version
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_folder_of_code_is_in_the_wheel() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    packed = settings["options"]["packages"].split()
    folders = {path.parent for path in (ROOT / "passportize").rglob("__init__.py")}
    folders.add(ROOT / "passportize" / "adapters")
    there = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert set(packed) == there and len(packed) == len(there)
    data = settings["options.package_data"]
    files = {path for path in (ROOT / "passportize").rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert {path.name for path in others} == {
        name for names in data.values() for name in names.split()
    }


def test_the_paper_is_cited() -> None:
    citation = load(ROOT / "CITATION.cff")
    paper = citation["references"][0]
    assert paper["title"] == "Passport-aware Normalization for Deep Model Protection"
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert names == [
        "Jie Zhang",
        "Dongdong Chen",
        "Jing Liao",
        "Weiming Zhang",
        "Gang Hua",
        "Nenghai Yu",
    ]
    assert paper["year"] == 2020 and citation["license"] == "Apache-2.0"


def test_python_and_torch_from_the_oldest_promised_on_are_tested(project: dict[str, Any]) -> None:
    jobs = load(WORKFLOWS / "tests.yml")["jobs"]
    oldest, newest = jobs["range"]["strategy"]["matrix"]["include"]
    prefix = "Programming Language :: Python :: 3."
    listed = [c for c in project["project"]["classifiers"] if c.startswith(prefix)]
    pythons = [c.removeprefix("Programming Language :: Python :: ") for c in listed]
    assert project["project"]["requires-python"] == f">={oldest['python']}"
    assert (pythons[0], pythons[-1]) == (oldest["python"], newest["python"])
    torch = next(item for item in project["project"]["dependencies"] if item.startswith("torch>="))
    assert oldest["torch"] == f"{torch.removeprefix('torch>=')}.0" and not newest["torch"]


def test_pre_commit_runs_what_make_lint_runs() -> None:
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    made = re.findall(r"^\t\$\(BIN\)/(.*)$", lint, flags=re.MULTILINE)
    hooks = [
        hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == [
        command.removesuffix(" .") for command in made
    ]
    pinned = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert all(f"\n{tool}==" in pinned for tool in ("ruff", "mypy", "import-linter"))


def test_workflows_call_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    called = {
        target
        for path in WORKFLOWS.glob("*.yml")
        for target in re.findall(r"run: make (\w+)", path.read_text(encoding="utf-8"))
    }
    assert called == {"test", "lint", "docs"} and called <= targets


def test_only_the_publishing_job_may_ask_for_a_token() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        workflow = load(path)
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            asked = job.get("permissions", {})
            assert asked == ({"id-token": "write"} if name == "publish" else {}), f"{path}: {name}"
    release = load(WORKFLOWS / "release.yml")
    # YAML 1.1 reads the key "on" as true.
    assert release[True] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["publish"]["needs"] == "build"
