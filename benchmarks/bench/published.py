"""The rows of the paper that are visible, with ours beside them: one page over all tables.

python -m benchmarks.bench.published            # writes benchmarks/results/bench.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.accuracy import mean_differences
from benchmarks.bench.budgets import Budget
from benchmarks.bench.columns import Row, spread
from benchmarks.common.paths import RESULTS
from benchmarks.pages.markdown import table, wrapped
from passportize.data.sets import SETS
from passportize.utils.files import write_atomically

__all__ = ["PUBLISHED", "Published", "page"]

SCHEMES = ("paper", "keyed", "keyed, whole batch", "signature")


@dataclass(frozen=True)
class Published:
    """One row.

    Attributes:
        task: What it is called.
        value: As published.
        record: The table of ours that has it.
        of: Our numbers, one for each seed, given the rows of a scheme.
        stand_in: The same on what is run here.
        stand_in_name: What that is.
    """

    task: str
    value: float
    record: str
    of: Callable[[Sequence[Row]], Sequence[float]]
    stand_in: Callable[[Sequence[Row]], Sequence[float]]
    stand_in_name: str


def _numbers(name: str, **wanted: Any) -> Callable[[Sequence[Row]], Sequence[float]]:
    """One number of the rows that are wanted, on a ResNet-18 with BatchNorm."""
    wanted = {"network": "resnet18", "norm": "bn", **wanted}

    def of(rows: Sequence[Row]) -> Sequence[float]:
        return [
            row[name]
            for row in rows
            if row.get(name) is not None and all(row.get(key) == it for key, it in wanted.items())
        ]

    return of


def _mean_difference(over: Sequence[str]) -> Callable[[Sequence[Row]], Sequence[float]]:
    def of(rows: Sequence[Row]) -> Sequence[float]:
        found = mean_differences([row for row in rows if row["set"] in over])
        return [value for value, count in found.values() if count == len(over)]

    return of


def _erb(name: str, value: float) -> Published:
    wanted = {"block": "CERB", "share": 0.1}
    return Published(
        f"ERB (deployment), {SETS[name].title}",
        value,
        "bench_erb",
        _numbers("after", set=name, **wanted),
        _numbers("after", set="fashion-mnist", **wanted),
        "Fashion-MNIST",
    )


def _transfer(first: str, second: str, value: float, stand_in: str) -> Published:
    return Published(
        f"fine-tuning, {SETS[first].title} to {SETS[second].title}",
        value,
        "bench_fine_tuning",
        _numbers("fidelity", set=first, form="RTAL"),
        _numbers("fidelity", set=stand_in, form="RTAL"),
        f"from {SETS[stand_in].title}",
    )


_FOUR = ("cifar10", "cifar100", "caltech101", "caltech256")
_LOW, _HIGH = "fashion-mnist-0-4", "fashion-mnist-5-9"
PUBLISHED = (
    Published(
        "deployment, CIFAR-10",
        94.7,
        "bench_accuracy",
        _numbers("deployment", set="cifar10"),
        _numbers("deployment", set="fashion-mnist"),
        "Fashion-MNIST",
    ),
    _erb("cifar10", 94.64),
    _erb("cifar100", 75.28),
    _erb("caltech101", 73.11),
    _erb("caltech256", 53.62),
    Published(
        "AD, mean of the four sets",
        0.9,
        "bench_accuracy",
        _mean_difference(_FOUR),
        _mean_difference(("fashion-mnist",)),
        "Fashion-MNIST alone",
    ),
    _transfer("cifar10", "cifar100", 71.72, _LOW),
    _transfer("cifar100", "cifar10", 91.97, _HIGH),
    _transfer("caltech101", "caltech256", 47.61, _LOW),
    _transfer("caltech256", "caltech101", 79.96, _HIGH),
)
"""Ten of twelve rows; the other two are not visible anywhere. They were printed as a baseline by a
later paper (Steganographic Passport, CVPR 2024), for a ResNet-18 at full width."""


def page(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown file.

    Args:
        records: By name; those that were not measured are missing.
    """
    body = []
    for row in PUBLISHED:
        rows = records.get(row.record, {}).get("rows", [])
        cells = []
        for scheme in SCHEMES:
            own = [each for each in rows if each["scheme"] == scheme and not each.get("waits")]
            real, other = row.of(own), row.stand_in(own)
            cells.append(f"**{spread(real)}**" if real else spread(other))
        waits = not any(cell.startswith("**") for cell in cells)
        measured = row.stand_in_name if any(cells) else "not run"
        state = f"waits for data; {measured}" if waits else "the same set"
        body.append([row.task, f"{row.value:.2f}", *cells, state])
    budgets = {name: Budget(**record["budget"]).words() for name, record in sorted(records.items())}
    parts = [
        "# The rows of the paper",
        wrapped(
            "The published numbers of passport-aware normalization (ten of twelve rows are "
            "visible; a later paper printed them as its baseline: ResNet-18 with "
            "BatchNorm at full width), and ours by the same command. Bold: measured on the same "
            "set. Otherwise the set could not be reached and the number is of the set that the "
            "last column names, at the budget below: it says how the schemes compare with each "
            "other, **not** how they compare with the published number."
        ),
        table(["row", "published", *(f"`{name}`" for name in SCHEMES), "ours is of"], body),
        "\n".join(f"- [{name}]({name}.md): {words}." for name, words in budgets.items()),
        wrapped(
            "With the sets in a folder, `python -m benchmarks.bench.accuracy --budget gpu --root "
            "FOLDER` and the commands of the other tables measure the real rows; how to get the "
            "sets is in [data.md](../../docs/data.md)."
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def records(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All records of the bench that are there."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("bench_*.json"))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the records")
    folder: Path = parser.parse_args(arguments).results
    text = page(records(folder))
    write_atomically(folder / "bench.md", text.encode(), overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
