"""The rows of ``pointnet.py`` as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.training.short_training import BATCH
from passportize.layers.joint_forward import MINIMUM_SAMPLES
from passportize.utils.files import write_atomically

PRESETS = ("plain", "keyed", "keyed, quarter", "paper", "signature")


@dataclass(frozen=True)
class Row:
    """One training run; accuracies in percent of the test part."""

    split: str
    seed: int
    preset: str
    epochs: int
    points: int
    train_items: int
    test_items: int
    classes: int
    deployment: float
    deployment_class_mean: float
    private: float | None
    bits: int
    bits_matched: int
    strength: float | None
    seconds: float

    @property
    def key(self) -> tuple[str, ...]:
        """What tells runs apart."""
        return tuple(str(v) for v in (self.split, self.seed, self.preset, self.epochs, self.points))


def read_rows(path: Path) -> list[Row]:
    """Finished runs."""
    if not path.is_file():
        return []
    kinds = {field.name: str(field.type) for field in fields(Row)}

    def value(name: str, text: str) -> Any:
        kind = kinds[name]
        if kind == "str":
            return text
        if not text:
            return None
        return int(text) if kind == "int" else float(text)

    with path.open(newline="") as file:
        return [Row(**{k: value(k, v) for k, v in row.items()}) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """All runs, or the old file stays."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        record = asdict(row)
        writer.writerow({k: round(v, 2) if isinstance(v, float) else v for k, v in record.items()})
    write_atomically(path, text.getvalue().encode())


def gaps_to_plain(rows: list[Row], split: str, preset: str) -> list[float]:
    """Deployment accuracy minus that of the plain model with the same seed."""
    plain = {
        row.seed: row.deployment for row in rows if (row.split, row.preset) == (split, "plain")
    }
    return [
        row.deployment - plain[row.seed]
        for row in rows
        if (row.split, row.preset) == (split, preset) and row.seed in plain
    ]


def report(rows: list[Row]) -> str:
    """The table as Markdown: mean and standard deviation over seeds."""

    def spread(values: list[float]) -> str:
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.1f}{deviation}" if values else "-"

    lines = [
        "| split | preset | seeds | deployment | class mean | private | bits right "
        "| strength | minus plain | CPU s per run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, preset in itertools.product(("random", "family"), PRESETS):
        some = [row for row in rows if (row.split, row.preset) == (split, preset)]
        if not some:
            continue
        gaps = gaps_to_plain(rows, split, preset)
        strengths = [row.strength for row in some if row.strength is not None]
        cells = [
            split,
            preset,
            str(len(some)),
            spread([row.deployment for row in some]),
            spread([row.deployment_class_mean for row in some]),
            spread([row.private for row in some if row.private is not None]),
            f"{100 * statistics.fmean(row.bits_matched / row.bits for row in some):.1f} % "
            f"of {some[0].bits}"
            if some[0].bits
            else "-",
            f"{min(strengths):.0f}" if strengths else "-",
            spread(gaps) if preset != "plain" else "-",
            f"{statistics.fmean(row.seconds for row in some):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def explain(rows: list[Row]) -> str:
    """The Markdown file."""
    first = rows[0]
    level = statistics.fmean(row.deployment for row in rows) / 100
    error = 100 * math.sqrt(level * (1 - level) / first.test_items)
    means = {
        f"{split} {preset}": statistics.fmean(gaps)
        for split, preset in itertools.product(("random", "family"), PRESETS[1:])
        if (gaps := gaps_to_plain(rows, split, preset))
    }
    outside = [f"{name} ({gap:+.1f})" for name, gap in means.items() if abs(gap) > error]
    verdict = "Mean differences to the plain model are within it, except for " + ", ".join(outside)
    if not outside:
        verdict = (
            "All mean differences to the plain model are within it; so few seeds cannot exclude a "
            "loss of a point or two"
        )
    return f"""# PointNet on KiCadShapes

Measured by `python -m benchmarks.point_clouds.pointnet --root PACKAGE` on one CPU thread: a small
PointNet with both transform nets, {first.classes} classes, {first.train_items} solids for training,
{first.points} points, {first.epochs} epochs, batch {BATCH}, each cloud turned around z at random in
training and test. "keyed" and "paper" send every cloud through both branches
(`private_fraction=1.0`), "keyed, quarter" is the default: a quarter of each batch through the
private one, here at least {MINIMUM_SAMPLES} clouds, see [method.md](../../docs/method.md). The
signature is embedded before the first step, except in "paper", which trains as published.
Accuracies in percent of about {first.test_items} test solids, mean ± standard deviation over seeds.
"minus plain" is paired: same seed, same start, same batches. One standard error from the size of
the test part alone is about {error:.1f} points. "strength" is the weakest seed, in bits (-log2 of
the exact p-value), read from the stripped model.

{verdict}.

{report(rows)}

The family split holds out whole families of names, the random one tests on siblings of training
solids that differ in a number of pins, say. Chance is {100 / first.classes:.1f} %. These are
trainings of a small model, made to compare the rows with each other, not with other people's.
"""
