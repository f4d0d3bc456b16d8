"""Expanded residual blocks: what a forger reaches with a little of the owner's data.

python -m benchmarks.bench.erb --budget cpu
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import attacked, means_of
from benchmarks.bench.cases import Bench, Case, owner
from benchmarks.bench.columns import Measured, accepted, bits, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run

__all__ = ["TABLE"]

BLOCKS = ("none", "IERB", "CERB")
SHARES = (0.02, 0.04, 0.1)


def measure(bench: Bench, case: Case) -> Measured:
    """Every block with every share of the data."""
    trained = bench.trained(case)
    means = replace(means_of(bench, case, trained), leaked=owner(case.seed))
    # More passes than others make, since there is at most a tenth of the data; as published, 100.
    passes = min(100, 10 * bench.budget.attack_epochs)
    blocks, shares = (BLOCKS, SHARES) if not bench.budget.small else (("CERB",), (0.1,))
    for block in blocks:
        for share in shares:
            steps = max(1, round(passes * share * len(list(means.data))))
            given = replace(means, steps=steps)
            keys: dict[str, Any] = {"block": block, "share": share}
            yield keys, partial(attacked, bench, case, trained, "erb", given, **keys)


TABLE = Table(
    name="erb",
    question="Does an expanded residual block forge a private branch?",
    about=(
        "The forger has the released model, which stays as it is, and a share of the owner's "
        "training images, with ten times as many passes over them as the budget gives others (100 "
        "at most). Deployment: accuracy of the released model. Forged: that of the branch with the "
        "substitute factors, as the judge of the scheme measures it. BDR: share of its scales "
        "whose signs are not the owner's, which the table can know and the forger cannot. "
        "'none' is training without a block. A scheme that takes no factors from a claimant reads "
        "the forger's own passport."
    ),
    keys={
        "set": "set",
        "network": "network",
        "norm": "norm",
        "scheme": "scheme",
        "block": "block",
        "share": "share of the data",
    },
    columns={
        "deployment": mean("after"),
        "forged": mean("forged_accuracy"),
        "forged bits": bits("forged_matched", "forged_total"),
        "BDR": mean("BDR"),
        "forgery accepted": accepted("forged_accepted"),
    },
    measure=measure,
    sets=IMAGE_SETS,
    schemes=("paper", "keyed", "signature"),
    plot=Plot("share", {"forged_accuracy": "accuracy of the forged branch (%)"}),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
