"""Ambiguity attacks I and II: another passport for the same released model.

python -m benchmarks.bench.ambiguity --budget cpu
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import attacked, means_of
from benchmarks.bench.cases import Bench, Case, owner
from benchmarks.bench.columns import Measured, accepted, bits, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run

__all__ = ["TABLE"]

FLIPS = (0.1, 0.5, 1.0)


def measure(bench: Bench, case: Case) -> Measured:
    """Attack I, and attack II with more and more of the owner's bits flipped."""
    trained = bench.trained(case)
    means = means_of(bench, case, trained)
    yield {"attack": "I"}, partial(attacked, bench, case, trained, "ambiguity-1", means)
    given = replace(means, leaked=owner(case.seed))
    for flip in FLIPS if not bench.budget.small else (0.5,):
        keys = {"attack": "II", "flip": flip}
        yield keys, partial(attacked, bench, case, trained, "ambiguity-2", given, flip=flip)


TABLE = Table(
    name="ambiguity",
    question="Do ambiguity attacks I and II forge a passport?",
    about=(
        "I: random passports trained on the owner's training images, the owner's claim (and with "
        "it the bottleneck) known. II: the owner's passports leaked, a share of the bits flipped, "
        "passports and a new bottleneck trained. The released model stays as it is. Forged: "
        "accuracy of the forged branch and bits of the forger's signature, as the judge of the "
        "scheme measures them. Schemes that take nothing from a claimant read the forger's own "
        "passport."
    ),
    keys={
        "set": "set",
        "network": "network",
        "norm": "norm",
        "scheme": "scheme",
        "attack": "attack",
        "flip": "share of bits flipped",
    },
    columns={
        "deployment": mean("after"),
        "forged": mean("forged_accuracy"),
        "forged bits": bits("forged_matched", "forged_total"),
        "cosine to the owner's passports": mean("cosine to the owner's passports"),
        "forgery accepted": accepted("forged_accepted"),
    },
    measure=measure,
    sets=IMAGE_SETS,
    schemes=("paper", "keyed", "signature"),
    plot=Plot("flip", {"forged_accuracy": "accuracy of the forged branch (%)"}),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
