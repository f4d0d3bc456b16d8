"""How much of every architecture of timm is followed: what a thief can move, and we move back.

The smallest model of every module of timm, as it is built, without values. A row of a weight counts
as moved where it is in a group of channels that can change places, or has a matrix on it; channels
that stop at a step (the outputs, an embedding of places that tells channels apart) do not. What is
not moved is not undone either: where a thief knows a symmetry there that the walk does not, the
rows behind it do not read.

    python -m benchmarks.proof.followed      # resumes; writes results/followed.json and .md
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, measure_models
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels

LARGEST = 1e8
"""Parameters beyond which the smallest model of a module is left out."""

MOST = 0.97
"""Share of rows from which a model counts as followed; the classifier's rows never move."""


def smallest_models() -> list[str]:
    """The model with the fewest parameters of every module of timm."""
    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            try:
                model = timm.create_model(name)
            except (RuntimeError, NotImplementedError):
                continue  # such models want real tensors while they are built
        size = sum(parameter.numel() for parameter in model.parameters())
        module = type(model).__module__.rpartition(".")[2]
        best[module] = min(best.get(module, (size, name)), (size, name))
    return [name for _, (size, name) in sorted(best.items()) if size <= LARGEST]


def measure(name: str) -> dict[str, Any]:
    """How much of the weights of one model can move."""
    model = timm.create_model(name, num_classes=10).eval()
    tied = find_tied_channels(model)
    moved, mixed = _rows(tied, spaces=False), _rows(tied, spaces=True)
    total = rows_moved = rows_mixed = 0.0
    stuck: Counter[str] = Counter()
    for weight, size in _weights(model):
        count = model.get_parameter(weight).shape[0]
        whole, matrix = len(moved[weight] | mixed[weight]), len(mixed[weight])
        total += size
        rows_moved += size * min(1.0, whole / count)
        rows_mixed += size * min(1.0, matrix / count)
        if whole < count / 2:
            stuck[re.sub(r"\d+", "*", weight)] += 1
    return {
        "weights": int(total),
        "moved": round(rows_moved / total, 4),
        "mixed": round(rows_mixed / total, 4),
        "stuck": dict(stuck.most_common(4)),
    }


def _weights(model: nn.Module) -> list[tuple[str, int]]:
    return [
        (name, parameter.numel())
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name.rpartition(".")[2] == "weight"
    ]


def _rows(tied: TiedChannels, spaces: bool) -> defaultdict[str, set[int]]:
    """Numbers of the rows of every weight that are in a group, or in a space."""
    places = [place for group in tied.groups for place in group.places]
    if spaces:
        places = [(side.axis, side.places) for space in tied.spaces for side in space.sides]
    rows: defaultdict[str, set[int]] = defaultdict(set)
    for at, entries in places:
        axis = tied.axes[at]
        if axis.role == "rows" and axis.rows is None:
            rows[axis.tensor] |= set((axis.first + entries).flatten().tolist())
    return rows


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    models = record["models"]
    known = {name: row for name, row in models.items() if "error" not in row}
    whole = [name for name, row in known.items() if row["moved"] >= MOST]
    lines = [
        "# How much of every architecture is followed",
        "",
        f"`{record['command']}`; torch {record['torch']}, timm {record['timm']}. The smallest "
        f"model of every module of timm, up to {LARGEST:.0e} parameters. Moved: share of all "
        "weights whose rows can change places or have a matrix on them, and are put back; mixed: "
        "those with a matrix. The rest is the classifier, and what is named: weights of which less "
        "than half of the rows move, numbers of blocks as `*`. "
        f"{len(whole)} of {len(known)} models are followed to at least {100 * MOST:.0f} %.",
        "",
        "| model | moved | mixed | not moved |",
        "|---|---|---|---|",
    ]
    for name, row in sorted(models.items(), key=lambda item: item[1].get("moved", 0.0)):
        if "error" in row:
            lines.append(f"| {name} | | | {row['error']} |")
            continue
        stuck = ", ".join(f"`{key}` ({count})" for key, count in row["stuck"].items())
        lines.append(f"| {name} | {row['moved']:.1%} | {row['mixed']:.1%} | {stuck} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help="by default the smallest of every module")
    parser.add_argument("--out", type=Path, default=RESULTS / "followed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading("how much of every architecture is followed", "benchmarks.proof.followed"),
        "timm": timm.__version__,
    }
    names = arguments.models or smallest_models()
    measure_models(arguments.out, record, names, measure, table)


if __name__ == "__main__":
    main()
