"""Markdown: tables, and prose in lines as long as those of README.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(text)


def wrapped(text: str) -> str:
    """Prose in lines of at most 140 characters; links stay whole."""
    return textwrap.fill(text, 140, break_long_words=False, break_on_hyphens=False)
