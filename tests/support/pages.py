"""Blocks of code on pages, run as they stand: Python, and lines of a shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asn1crypto import tsp
from typer.testing import CliRunner

from passportize.cli.application import application
from passportize.passport.file import PASSPHRASE
from tests.support import ROOT
from tests.support.time_stamping_authority import Authority

__all__ = ["AUTHORITY", "EXCEPTIONS", "Block", "Reader", "blocks", "pages_with_blocks"]

AUTHORITY = Authority()
"""Answers in the place of the authority that a page sends its request to."""

EXCEPTIONS = {
    "apt-get": "downloads a package of 379 MB",
    "git": "downloads a repository",
    "make": "its targets are looked up in the Makefile; CI runs them",
    "pip": "its extras are looked up in pyproject.toml; the packaging command installs them",
    "torchrun": "eight GPUs; the same launcher runs in tests of the integration",
    "pytest": "the suite that this test is part of",
    "benchmarks": "minutes to hours; their results are committed, and tests see that they exist",
}
"""Programs in shell blocks that are not run, and why."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line that it starts at, and its text."""

    language: str
    line: int
    text: str


def blocks(page: str) -> list[Block]:
    """All blocks of a page of the repository, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(found[1], text[: found.start()].count("\n") + 1, found[2]) for found in fenced]


def pages_with_blocks() -> list[str]:
    """Pages that show Python or commands; those of results say what was run, not what to run."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages += [ROOT / "tests" / "README.md", ROOT / "benchmarks" / "README.md"]
    names = sorted(page.relative_to(ROOT).as_posix() for page in pages)
    return [name for name in names if any(block.language != "text" for block in blocks(name))]


@dataclass
class Reader:
    """Does what a page says, in the folder that it is started in.

    Attributes:
        names: What Python blocks know of, and what they have made.
        words: Passphrase of the passports of the page.
        printed: What commands have printed.
        left_out: Lines that were not run.
    """

    names: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    printed: str = ""
    left_out: list[str] = field(default_factory=list)

    def read(self, block: Block) -> None:
        """Run one block."""
        if block.language == "python":
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        elif block.language in ("sh", "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                self._line(line)
        else:
            assert block.language == "text", f"line {block.line}: which language is this?"

    def _line(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if not words:
            return
        program, *arguments = words
        if arguments[:2] == ["-m", "pytest"]:
            program = "pytest"
        if arguments[:1] == ["-m"] and arguments[1].startswith("benchmarks."):
            program = "benchmarks"
        if program in EXCEPTIONS:
            self.left_out.append(line)
            _look_up(program, arguments)
        elif program == "passportize":
            # timm-train takes it out of the environment.
            os.environ[PASSPHRASE] = self.words
            result = CliRunner().invoke(application(), arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}{result.stderr}"
            self.printed += result.output
        elif program == "curl":
            sent = next(word[1:] for word in arguments if word.startswith("@"))
            asked = tsp.TimeStampReq.load(Path(sent).read_bytes())["message_imprint"]
            stamped = asked["hashed_message"].native
            Path(arguments[-1]).write_bytes(AUTHORITY.response(b"", imprint=stamped))
        else:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            self.printed += done.stdout


def _look_up(program: str, arguments: list[str]) -> None:
    """Hold what is not run against what there is."""
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in arguments:
            assert "=" in target or f"\n{target}:" in makefile, target
    if program == "pip":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", " ".join(arguments)))):
            assert f"\n{extra} = [" in project, extra
