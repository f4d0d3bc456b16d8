"""What protection costs: accuracy of the released model and of the private branch.

python -m benchmarks.bench.accuracy --budget cpu
python -m benchmarks.bench.accuracy --budget gpu --device cuda --root data
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.bench.cases import Bench, Case
from benchmarks.bench.columns import Measured, Row, accepted, bits, least, mean, minus_plain
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from benchmarks.pages.markdown import table as markdown

__all__ = ["IMAGE_SETS", "TABLE", "measure", "mean_differences"]

IMAGE_SETS = ("fashion-mnist", "cifar10", "cifar100", "caltech101", "caltech256")


def measure(bench: Bench, case: Case) -> Measured:
    """One training, judged in its released model."""
    yield {}, partial(_judged, bench, case)


def _judged(bench: Bench, case: Case) -> dict[str, Any]:
    trained = bench.trained(case)
    found = bench.finding(trained, case.set)
    public, private = found.public_accuracy, found.private_accuracy
    return {
        "deployment": public,
        "verification": private,
        "difference": None if public is None or private is None else abs(public - private),
        "matched": found.matched,
        "total": found.total,
        "strength": found.strength if found.total else None,
        "accepted": found.accepted,
        "epoch": trained.training.epoch,
        "seconds": trained.seconds,
    }


def mean_differences(rows: Sequence[Row]) -> dict[str, tuple[float, int]]:
    """AD of each scheme, with the number of sets: ResNet-18 with BatchNorm, mean over sets."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.get("difference") is not None and (row["network"], row["norm"]) == KEY:
            found.setdefault(row["scheme"], {}).setdefault(row["set"], []).append(row["difference"])
    return {
        scheme: (statistics.fmean(map(statistics.fmean, sets.values())), len(sets))
        for scheme, sets in found.items()
    }


KEY = ("resnet18", "bn")


def _below(rows: Sequence[Row]) -> str:
    found = mean_differences(rows)
    if not found:
        return ""
    body = [[f"`{scheme}`", f"{value:.2f}", sets] for scheme, (value, sets) in found.items()]
    return (
        "AD, the mean absolute difference of deployment and verification accuracy over the sets "
        "(ResNet-18, bn):\n\n" + markdown(["scheme", "AD (points)", "sets"], body)
    )


TABLE = Table(
    name="accuracy",
    question="What does protection cost in accuracy?",
    about=(
        "Deployment: the released model. Verification: the private branch put back into it, its "
        "statistics measured anew. Accuracies in percent of the test part, mean ± standard "
        "deviation over seeds; 'minus plain' is paired: same seed, same start, same batches. "
        "`keyed` sends a quarter of each batch through its private branch where nothing else is "
        "said. "
        "Strength: the weakest seed, in bits; 64 are needed."
    ),
    keys={"set": "set", "network": "network", "norm": "norm", "scheme": "scheme"},
    columns={
        "deployment": mean("deployment"),
        "minus plain": minus_plain("deployment", "set", "network", "norm"),
        "verification": mean("verification"),
        "bits": bits(),
        "strength": least("strength"),
        "accepted": accepted(),
        "seconds": mean("seconds", 0),
    },
    measure=measure,
    sets=IMAGE_SETS,
    schemes=("plain", "paper", "keyed", "keyed, whole batch", "signature"),
    networks=("resnet18", "alexnet"),
    norms=("bn", "gn"),
    plot=Plot(
        "set",
        {"deployment": "deployment accuracy (%)", "verification": "verification accuracy (%)"},
    ),
    below=_below,
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
