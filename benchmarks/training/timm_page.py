"""The page about ``timm_families.py``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

Record = Mapping[str, str]
TOLERANCE = 0.25
"""How much smaller the fall of the public loss may be than the plain one's, as a share of it."""
NOTABLE = 0.1
"""A plain loss that falls by less tells nothing about the public one."""
TITLES = {
    "sgd": "SGD, rate {rate:g}, momentum 0.9, weight decay 5e-4: models with batch norms",
    "adamw": "AdamW, rate {rate:g}, weight decay 0.05: all others",
}


def write_page(
    path: Path,
    rows: Sequence[Record],
    steps: int,
    batch: int,
    size: int,
    rates: Mapping[str, float],
    warm_up: int,
) -> None:
    """Write a table for each optimizer."""
    versions = "; ".join(sorted({row["versions"] for row in rows}))
    lines = [
        "# timm models of many families, thirty steps plain and with passports",
        "",
        "Made by `python -m benchmarks.training.timm_families`; the rows are in "
        f"`training_timm.csv`. Versions: {versions}.",
        "",
        f"{steps} steps from a fresh model, {warm_up} of them warm-up and then a cosine, on "
        f"handwritten digits at {size} x {size} pixels, batches of {batch}; `keyed` with all its "
        "settings as they come, `embed_signature` before the first step; the same start, batches "
        "and seed for both; nothing is tuned for a model. Losses are means of the first and the "
        "last five steps. *Embedded*: how far that moved the weights (all bits were in then). "
        "*Bits*: right of all after the steps, read by `verify` from the weights. *Closed*: bits "
        "after a second `embed_signature` at the end, how far it moved the weights, and the public "
        "loss on the last five batches then. *Step*: processor time of a step with "
        "passports over a plain one, median of the paired ratios; half of each small batch takes "
        "the private branch where norms measure the batch (eight samples at least), a quarter "
        "elsewhere.",
    ]
    for kind, rate in rates.items():
        chosen = [row for row in rows if row["optimizer"] == kind]
        if chosen:
            lines += ["", f"## {TITLES[kind].format(rate=rate)}", "", *_summary(chosen)]
            lines += ["", *_table(chosen)]
    short = [row["name"] for row in rows if row["closed_matched"] != row["bits"]]
    if short:
        lines += [
            "",
            f"Not all bits after the second embedding: {', '.join(f'`{name}`' for name in short)}. "
            "Where two norms answer to the same short rows (a depthwise kernel of nine entries "
            "that a BatchNorm and a LayerNorm are bound to), their conditions can exclude each "
            "other.",
        ]
    path.write_text("\n".join(lines) + "\n")


def falling_losses(rows: Sequence[Record]) -> tuple[int, int]:
    """In how many models the plain loss falls, and in how many of them the public one as well."""
    falls = [(_fall(row, "plain"), _fall(row, "public")) for row in rows]
    falling = [(plain, ours) for plain, ours in falls if plain > NOTABLE]
    return len(falling), sum(ours >= (1 - TOLERANCE) * plain for plain, ours in falling)


def _summary(rows: Sequence[Record]) -> list[str]:
    right = sum(int(row["bits_matched"]) for row in rows)
    total = sum(int(row["bits"]) for row in rows)
    everything = sum(row["bits_matched"] == row["bits"] for row in rows)
    closed = sum(row["closed_matched"] == row["bits"] for row in rows)
    strengths = [float(row["strength"]) for row in rows]
    ratios = [float(row["step_ratio"]) for row in rows]
    gaps = [float(row["public_last"]) - float(row["plain_last"]) for row in rows]
    falling, level = falling_losses(rows)
    return [
        f"- {len(rows)} models. Everything finite in "
        f"{sum(row['all_finite'] == 'yes' for row in rows)}; output of the restored model equal to "
        f"that of the public branch in {sum(row['restored'] == 'yes' for row in rows)}.",
        f"- {right:,} of {total:,} bits ({100 * right / total:.2f} %), all of them in {everything} "
        f"models, least strength {min(strengths):,.0f} bits (64 are needed). After the second "
        f"embedding all bits in {closed} models; it moved the weights by "
        f"{100 * max(float(row['closed_change']) for row in rows):.1f} % at most.",
        f"- The plain loss falls by more than {NOTABLE} in {falling} models; in {level} of "
        f"them the public loss falls at least {1 - TOLERANCE:.0%} as far. Last public minus last "
        f"plain loss: median {statistics.median(gaps):+.2f}, from {min(gaps):+.2f} to "
        f"{max(gaps):+.2f}.",
        f"- Step: median {statistics.median(ratios):.2f}, at most {max(ratios):.2f}.",
    ]


def _table(rows: Sequence[Record]) -> list[str]:
    heads = (
        "model", "norms", "plain loss", "public loss", "private, last", "embedded", "bits",
        "strength", "closed", "step",
    )  # fmt: skip
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(_line(row) for row in rows)]


def _fall(row: Record, branch: str) -> float:
    return float(row[f"{branch}_first"]) - float(row[f"{branch}_last"])


def _line(row: Record) -> str:
    cut = f" ({row['built_with']})" if row["built_with"] else ""
    mark = "" if row["all_finite"] == row["restored"] == "yes" else " **not finite or not equal**"
    cells = [
        f"`{row['name']}`{cut}{mark}",
        row["norms"],
        *(
            f"{float(row[f'{branch}_first']):.2f} to {float(row[f'{branch}_last']):.2f}"
            for branch in ("plain", "public")
        ),
        f"{float(row['private_last']):.2f}",
        f"{100 * float(row['change']):.0f} %",
        f"{int(row['bits_matched']):,} of {int(row['bits']):,}",
        f"{float(row['strength']):,.0f}",
        f"{int(row['closed_matched']):,}, {100 * float(row['closed_change']):.1f} %, "
        f"{float(row['closed_loss']):.2f}",
        f"{float(row['step_ratio']):.2f}",
    ]
    return f"| {' | '.join(cells)} |"
