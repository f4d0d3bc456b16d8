"""The picture of the README: what `passportize plan` and `passportize verify` print, as SVG.

    python -m tools.terminal_picture

Runs the demo (a minute or two), lets a thief work on a copy, and shows the beginning of the plan
and the end of the verdict. Letters come from the reader's machine, nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile

import torch
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from typer.testing import CliRunner

from passportize.cli.application import application
from tests.support import ROOT
from tools.report_pictures import call, suspects

PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
PLAN, PLANNED = ("plan", "resnet18"), 7
VERIFY, JUDGED = (
    (
        *("verify", "copy.safetensors", "--passport", "acme.passport"),
        *("--claim", "acme.claim.safetensors", "--data", "digits"),
        *("--model", "passportize.demo.recipe:build_model", "--arg", "seed=0"),
    ),
    11,
)
GREEN = "bold green"


def printed(arguments: tuple[str, ...]) -> list[str]:
    """Lines that a command prints; it has to be accepted or done."""
    result = CliRunner().invoke(application(), list(arguments))
    if result.exit_code:
        raise SystemExit(f"{arguments}: {result.output}{result.stderr}")
    return result.stdout.rstrip().splitlines()


def draw(shown: list[tuple[str, list[str]]]) -> str:
    """SVG of commands and what they printed."""
    console = Console(record=True, width=100, file=io.StringIO(), highlight=False)
    for command, lines in shown:
        console.print(Text.assemble(("$ ", GREEN), (f"passportize {command}", "bold")))
        for line in lines:
            style = GREEN if line.startswith("verdict:") else ""
            console.print(Text(line, style=style, no_wrap=True, overflow="ellipsis"))
        console.print()
    drawn = console.export_svg(title="passportize", theme=MONOKAI, unique_id="passportize")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


def main() -> None:
    """Draw it anew."""
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(),
        contextlib.chdir(folder),
    ):
        call("demo", "-o", "demo")
        suspects()
        inside = tuple(f"demo/{word}" if word.startswith("acme.") else word for word in VERIFY)
        verdict = printed(inside)
    command = " ".join(VERIFY[:6]) + " \\\n    " + " ".join(VERIFY[6:])
    shown = [
        (f"{' '.join(PLAN)} | head -{PLANNED}", printed(PLAN)[:PLANNED]),
        (f"{command} | tail -{JUDGED}", verdict[-JUDGED:]),
    ]
    PICTURE.write_text(draw(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
