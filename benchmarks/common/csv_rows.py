"""Rows of a benchmark that come one by one: a file that a killed run goes on with."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def read_rows(path: Path) -> list[dict[str, str]]:
    """What was measured so far; nothing where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, object], digits: int = 3) -> None:
    """Write one row behind the others, the first with a header; floats with so many digits."""
    first = not path.exists()
    path.parent.mkdir(exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if first:
            writer.writeheader()
        writer.writerow(
            {
                key: f"{value:.{digits}f}" if isinstance(value, float) else value
                for key, value in row.items()
            }
        )
