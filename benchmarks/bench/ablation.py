"""Bottleneck and statistics: what each is worth to the published scheme, and to ours.

python -m benchmarks.bench.ablation --budget cpu
"""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.bench.accuracy import TABLE as ACCURACY
from benchmarks.bench.table import run

__all__ = ["TABLE"]

TABLE = replace(
    ACCURACY,
    name="ablation",
    question="What are bottleneck and private statistics worth?",
    about=(
        "`paper`: bottleneck and statistics of its own. `deepipr, own statistics`: no bottleneck. "
        "`deepipr`: neither, both branches share running statistics. `keyed`: statistics of its "
        "own, and a fixed function in place of the bottleneck, on a quarter of each batch, half "
        "or all of it. " + ACCURACY.about
    ),
    schemes=(
        "plain",
        "paper",
        "deepipr, own statistics",
        "deepipr",
        "keyed",
        "keyed, half batch",
        "keyed, whole batch",
    ),
    networks=("resnet18",),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
