"""The rows of the coverage sweep, and the files that they are in."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS


@dataclass
class Row:
    """What was found for one model; empty where it was not measured."""

    name: str
    mode: str
    error: str = ""
    parameters: int = 0
    norms: int = 0
    kinds: str = ""
    bound: int = 0
    statistics: int = 0
    skipped: int = 0
    unreached: int = 0
    reasons: str = ""
    bits: int = 0
    method: str = ""
    preset: str = ""
    built_with: str = ""
    input: str = ""
    public_eval_exact: str = ""
    public_train_exact: str = ""
    private_differs: str = ""
    gradients: str = ""
    keys_unchanged: str = ""
    restored: str = ""
    build_s: float = 0.0
    plan_s: float = 0.0
    passportize_s: float = 0.0
    restore_s: float = 0.0
    total_s: float = 0.0
    build_peak_mib: int = 0
    surgery_peak_mib: int = 0
    peak_mib: int = 0
    clock: str = "cpu"
    versions: str = ""


def table(library: str, mode: str) -> Path:
    """The file of one mode; each has one row per model."""
    return RESULTS / f"coverage_{library}{'' if mode == 'real' else '_meta'}.csv"


def read_table(library: str, mode: str) -> dict[str, dict[str, str]]:
    """The rows of one mode by the name of the model."""
    return {row["name"]: row for row in read_rows(table(library, mode))}


def drop(library: str, mode: str, names: set[str]) -> None:
    """Forget the rows of some models, so that they are measured again."""
    rows = [row for name, row in read_table(library, mode).items() if name not in names]
    path = table(library, mode)
    if path.exists():
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, [field.name for field in fields(Row)], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)
