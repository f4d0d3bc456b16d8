"""The record of a benchmark and its page, written together, after every row."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from passportize.utils.files import write_atomically

__all__ = ["earlier_rows", "heading", "write_record"]


def heading(question: str, command: str, threads: str = "1 thread") -> dict[str, Any]:
    """How a record begins: what was asked, by which command, on which machine and torch.

    Args:
        question: What was asked.
        command: The module, ``benchmarks.proof.kin`` say.
        threads: How many threads it had.
    """
    return {
        "question": question,
        "command": f"python -m {command}",
        "machine": f"{platform.machine()}, {threads}",
        "torch": torch.__version__,
    }


def write_record(path: Path, record: dict[str, Any], page: str) -> None:
    """Write a record as JSON, and its page beside it.

    Args:
        path: The JSON file.
        record: What was measured.
        page: The same as Markdown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, text.encode(), overwrite=True)
    write_atomically(path.with_suffix(".md"), page.encode(), overwrite=True)


def earlier_rows(path: Path) -> dict[str, Any]:
    """What a record of models has already, for a benchmark that goes on where it stopped."""
    if not path.exists():
        return {}
    models: dict[str, Any] = json.loads(path.read_text())["models"]
    return models
