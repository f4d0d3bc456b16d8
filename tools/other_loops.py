"""Print a training script with the edits of docs/other_loops.md: ``other_loops NAME SCRIPT``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

__all__ = ["edited", "edits_of"]

PAGE = Path(__file__).parents[1] / "docs" / "other_loops.md"


def edits_of(name: str, page: str) -> list[list[str]]:
    """The edits of one section: for each the lines of a diff, without its ``@@``.

    Raises:
        ValueError: The page has no such section.
    """
    found = re.search(rf"^## {re.escape(name)}$.*?^```diff\n(.*?)^```", page, re.M | re.S | re.I)
    if found is None:
        raise ValueError(f"{name}: the page has no edits for it")
    return [part.splitlines() for part in found[1].split("@@\n")[1:]]


def edited(script: str, edits: list[list[str]]) -> str:
    """A script with its edits.

    Raises:
        ValueError: Lines that an edit is about are missing, or there several times.
    """
    lines = [line.rstrip() for line in script.splitlines()]
    for edit in edits:
        old = [line[1:].rstrip() for line in edit if line[:1] in ("-", " ")]
        new = [line[1:].rstrip() for line in edit if line[:1] in ("+", " ")]
        places = [at for at in range(len(lines)) if lines[at : at + len(old)] == old]
        if len(places) != 1:
            raise ValueError(f"{len(places)} places, not one, for the edit of {old[0].strip()!r}")
        lines[places[0] : places[0] + len(old)] = new
    return "\n".join([*lines, ""])


def main() -> None:
    """Print the script of the command line with its edits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="torchvision, mmengine or 'PyTorch Geometric'")
    parser.add_argument("script", type=Path)
    options = parser.parse_args()
    try:
        edits = edits_of(options.name, PAGE.read_text(encoding="utf-8"))
        print(edited(options.script.read_text(encoding="utf-8"), edits), end="")
    except ValueError as error:
        sys.exit(f"other_loops: {error}")


if __name__ == "__main__":
    main()
