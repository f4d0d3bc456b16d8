"""The page of what was measured on marking, from the committed CSV files alone.

python -m benchmarks.marking.page
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.pages.markdown import table, wrapped

__all__ = ["page"]

OUT = RESULTS / "marking.md"


def page() -> str:
    """The page."""
    parts = ["# Marking trained models", "Written by `python -m benchmarks.marking.page`."]
    parts += _pretrained()
    parts += _trained()
    parts += _collusion()
    return "\n\n".join(parts) + "\n"


def _pretrained() -> list[str]:
    rows = read_rows(RESULTS / "marking_pretrained.csv")
    if not rows:
        return []
    crops = rows[0]["crops"]
    seen = [row for row in rows if row["seen"] and row["how"] == "least output"]
    return [
        "## Real ImageNet weights: tf_efficientnet_lite0",
        wrapped(
            f"`python -m benchmarks.marking.pretrained`, one CPU thread of a busy machine. {crops} "
            "crops of pictures that were not used for the calibration (64 crops of others, no "
            "labels); divergence is that of the outputs from the original's, agreement that of the "
            "first class: over all crops, and over those where the original is above a half. The "
            "thief has 96 other crops of the pictures of the calibration."
        ),
        table(
            ("how", "margin", "rows", "ridge", "bits", "divergence", "agreement, all / sure"),
            [
                (
                    row["how"],
                    row["margin"],
                    _rows_of(row),
                    row["ridge"],
                    f"{row['matched']} of {row['bits']}",
                    f"{float(row['divergence']):.4f}",
                    _agreement(row),
                )
                for row in rows
                if row["thief"] == "nothing" and row["how"] != "unmarked"
            ],
        ),
        "What thieves do, and what is left:",
        table(
            ("mark", "thief", "bits", "strength", "divergence", "agreement, all / sure"),
            [
                (
                    f"margin {row['margin']}, ridge {row['ridge']}" if row["bits"] else "none",
                    row["thief"],
                    f"{row['matched']} of {row['bits']}" if row["bits"] else "",
                    f"{float(row['strength']):.0f}" if row["bits"] else "",
                    f"{float(row['divergence']):.4f}",
                    _agreement(row),
                )
                for row in rows
                if row["thief"] != "nothing"
            ],
        ),
        *(
            [
                wrapped(
                    "Whether a thief with inputs tells marked rows from others by how much of them "
                    "lies where the inputs are small (area under the ROC curve; 0.5 is a guess): "
                    + "; ".join(
                        f"{float(row['seen']):.3f} at margin {row['margin']} and ridge "
                        f"{row['ridge']}"
                        for row in seen
                    )
                    + "."
                )
            ]
            if seen
            else []
        ),
    ]


def _trained() -> list[str]:
    rows = read_rows(RESULTS / "marking_trained.csv")
    if not rows:
        return []
    return [
        "## Networks trained on Fashion-MNIST",
        wrapped(
            "`python -m benchmarks.marking.trained`. Three epochs on 20,000 images; points lost by "
            "marking, and after what a thief does; share of the training's time that marking took."
        ),
        table(
            ("network", "seed", "asked", "margin", "thief", "accuracy", "lost", "strength", "time"),
            [
                (
                    row["network"],
                    row["seed"],
                    row["asked"],
                    row["margin"],
                    row["thief"],
                    f"{float(row['accuracy']):.2f}",
                    f"{float(row['lost']):.2f}",
                    f"{float(row['strength']):.0f} ({row['matched']} of {row['bits']})",
                    f"{100 * float(row['share_of_training']):.1f} %",
                )
                for row in rows
            ],
        ),
    ]


def _collusion() -> list[str]:
    rows = read_rows(RESULTS / "marking_collusion.csv")
    if not rows:
        return []
    return [
        "## Licensees who mix their copies",
        wrapped(
            "`python -m benchmarks.marking.collusion`: 100 licensees are asked about, named is who "
            "reaches 20 bits of strength after that is paid for. Trials in which at least one of "
            "the colluders is named, and how many colluders are on average; without the owner's "
            "original / with it."
        ),
        table(
            ("bits", "colluders", "mixture", "trials with one named", "named", "innocents"),
            [
                (
                    row["bits"],
                    row["colluders"],
                    row["mixture"],
                    f"{row['trials_with_one_named_alone']} / "
                    f"{row['trials_with_one_named_with_original']} of {row['trials']}",
                    f"{int(row['named_alone']) / int(row['trials']):.1f} / "
                    f"{int(row['named_with_original']) / int(row['trials']):.1f}",
                    f"{row['innocents_alone']} / {row['innocents_with_original']}",
                )
                for row in rows
            ],
        ),
    ]


def _rows_of(row: Mapping[str, str]) -> str:
    if row["asked"] != "all":
        return f"{row['asked']} picked"
    return f"all of {row['shortest_row']} entries and more"


def _agreement(row: Mapping[str, str]) -> str:
    return f"{float(row['agreement']):.1f} / {float(row['agreement_sure']):.1f} %"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    OUT.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
