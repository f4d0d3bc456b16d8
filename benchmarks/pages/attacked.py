"""The table of attacks in README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bench.attacks import SHORT, summary
from benchmarks.pages.markdown import wrapped

__all__ = ["attacked"]

RESULTS = "benchmarks/results"


def attacked(record: Mapping[str, Any]) -> str:
    """What attacks leave of each scheme, and two pictures.

    Args:
        record: The result ``bench_attacks``, of one set, network and norm.
    """
    rows, budget = record["rows"], record["budget"]
    # A seed that is not whole would put some attacks on more networks than others.
    counts = {
        seed: sum(row["seed"] == seed for row in rows) for seed in {row["seed"] for row in rows}
    }
    whole = [row for row in rows if counts[row["seed"]] == max(counts.values())]
    seeds = len({row["seed"] for row in whole})
    about = (
        f"What attacks leave ([`bench_attacks.md`]({RESULTS}/bench_attacks.md)): a ResNet-18 of "
        f"width {budget['width']:g} on {budget['images']:,} images of Fashion-MNIST, "
        f"{budget['epochs']} epochs, {seeds} seed{'s' if seeds > 1 else ''}; attackers have the "
        "same images, with labels."
    )
    pictures = (
        f"![Accuracy and strength that each attack leaves]({RESULTS}/bench_attacks.svg)",
        f"![Accuracy and bits left after pruning]({RESULTS}/bench_pruning.svg)",
    )
    return "\n\n".join([wrapped(about), SHORT, summary(whole), *pictures])
