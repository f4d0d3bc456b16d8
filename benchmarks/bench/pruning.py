"""Pruning curves: accuracy and bits against the share of weights that are zero.

python -m benchmarks.bench.pruning --budget cpu
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import attacked, means_of
from benchmarks.bench.cases import Bench, Case, Trained
from benchmarks.bench.columns import Measured, accepted, bits, least, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from passportize.attacks.attack import Means

__all__ = ["TABLE"]

SHARES = tuple(step / 10 for step in range(11))


def measure(bench: Bench, case: Case) -> Measured:
    """The smallest weights of the whole model, and of each layer, 0 to 100 %."""
    trained = bench.trained(case)
    means = means_of(bench, case, trained)
    shares = SHARES if not bench.budget.small else (0.5,)
    for scope in ("global", "layer"):
        for share in shares:
            keys: dict[str, Any] = {"scope": scope, "share": share}
            yield keys, partial(_pruned, bench, case, trained, means, **keys)


def _pruned(
    bench: Bench, case: Case, trained: Trained, means: Means, **given: Any
) -> dict[str, Any]:
    row = attacked(bench, case, trained, "prune", means, **given)
    return {"bits": 100 * row["matched"] / row["total"] if row.get("total") else None, **row}


TABLE = Table(
    name="pruning",
    question="What does pruning leave?",
    about=(
        "The smallest weights become zero, of the whole model ('global') or of each layer. "
        "Deployment: the pruned model; verification: the private branch in it; in percent."
    ),
    keys={
        "set": "set",
        "network": "network",
        "norm": "norm",
        "scope": "scope",
        "scheme": "scheme",
        "share": "share pruned",
    },
    columns={
        "deployment": mean("after"),
        "verification": mean("verification"),
        "bits": bits(),
        "strength": least("strength"),
        "accepted": accepted(),
    },
    measure=measure,
    sets=IMAGE_SETS,
    plot=Plot(
        "share",
        {"after": "accuracy of the pruned model (%)", "bits": "bits that match (%)"},
        panels="scope",
    ),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
