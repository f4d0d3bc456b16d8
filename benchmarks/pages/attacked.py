"""The table of attacks in README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bench.attacks import SHORT, summary
from benchmarks.bench.budgets import Budget
from benchmarks.bench.columns import cases
from benchmarks.pages.markdown import wrapped

__all__ = ["attacked"]

RESULTS = "benchmarks/results"


def attacked(record: Mapping[str, Any]) -> str:
    """What attacks leave of each scheme, and two pictures.

    Args:
        record: The result ``bench_attacks``, of one set, network and norm.
    """
    finished = cases(record["finished"], ["seed"])
    # A seed that is not whole would put some attacks on more networks than others.
    schemes = max(len(own) for own in finished.values())
    whole = {seed for (seed,), own in finished.items() if len(own) == schemes}
    rows = [row for row in record["rows"] if row["seed"] in whole]
    about = (
        f"What attacks leave of a ResNet-18 on Fashion-MNIST, {len(whole)} seed"
        f"{'s' if len(whole) > 1 else ''} ([`bench_attacks.md`]({RESULTS}/bench_attacks.md)). "
        f"{Budget(**record['budget']).words()}. They have the owner's images, with labels. {SHORT}"
    )
    pictures = (
        f"![Accuracy and strength that each attack leaves]({RESULTS}/bench_attacks.svg)",
        f"![Accuracy and bits left after pruning]({RESULTS}/bench_pruning.svg)",
    )
    return "\n\n".join([wrapped(about), summary(rows), *pictures])
