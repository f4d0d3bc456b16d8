"""The record of a benchmark and its page, written together, after every row."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from passportize.errors import PassportizeError
from passportize.utils.files import write_atomically

__all__ = ["earlier_rows", "heading", "measure_models", "write_record"]


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


def measure_models(
    path: Path,
    record: dict[str, Any],
    names: Iterable[str],
    measure: Callable[[str], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure every model that a record has not yet, and write it and its page after each.

    Args:
        path: The JSON file; what it has already is kept.
        record: What the record says beside its models.
        names: The models.
        measure: Gives the row of a model; what it raises of this library or torch is its row.
        table: The record as Markdown.
    """
    record["models"] = earlier_rows(path)
    for name in names:
        if name in record["models"]:
            continue
        try:
            record["models"][name] = measure(name)
        except (PassportizeError, RuntimeError) as error:
            record["models"][name] = {"error": str(error).partition("\n")[0][:120]}
        print(name, record["models"][name], flush=True)
        write_record(path, record, table(record))


def earlier_rows(path: Path) -> dict[str, Any]:
    """What a record of models has already, for a benchmark that goes on where it stopped."""
    if not path.exists():
        return {}
    models: dict[str, Any] = json.loads(path.read_text())["models"]
    return models
