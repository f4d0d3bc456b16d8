"""The page of what was measured on marking, from the committed CSV files alone.

python -m benchmarks.marking.page
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.columns import Row, accepted, cases, least, mean
from benchmarks.bench.plots import Plot
from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.trained import DEFAULT
from benchmarks.pages.markdown import table, wrapped
from passportize.thresholds import ACCEPT_STRENGTH

__all__ = ["draw", "page"]

OUT = RESULTS / "marking.md"


def page() -> str:
    """The page."""
    parts = ["# Marking trained models", "Written by `python -m benchmarks.marking.page`."]
    parts += _pretrained()
    parts += _trained()
    parts += _trained_in()
    parts += _fitted()
    parts += _collusion()
    return "\n\n".join(parts) + "\n"


def _pretrained() -> list[str]:
    rows = read_rows(RESULTS / "marking_pretrained.csv")
    if not rows:
        return []
    crops = rows[0]["crops"]
    seen = [row for row in rows if row["seen"] and row["how"] == "by inputs"]
    return [
        "## Real ImageNet weights: tf_efficientnet_lite0",
        wrapped(
            f"`python -m benchmarks.marking.pretrained`, one CPU thread of a busy machine. {crops} "
            "crops of pictures that were not used for the calibration (64 crops of others, no "
            "labels); share is what the mark may make of the variance of what marked rows compute; "
            "divergence is that of the outputs from the original's, agreement that of the "
            "first class: over all crops, and over those where the original is above a half. The "
            "thief has 96 other crops of the pictures of the calibration."
        ),
        table(
            ("how", "margin", "rows", "share", "bits", "divergence", "agreement, all / sure"),
            [
                (
                    row["how"],
                    row["margin"],
                    _rows_of(row),
                    row["share"],
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
                    f"margin {row['margin']}, share {row['share']}" if row["bits"] else "none",
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
                        f"{float(row['seen']):.3f} at margin {row['margin']} and share "
                        f"{row['share']}"
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
    rows = _numbers(read_rows(RESULTS / "marking_trained.csv"))
    if not rows:
        return []
    marked = [row for row in rows if row["thief"] == "nothing"]
    return [
        "## Networks trained here",
        wrapped(
            "`python -m benchmarks.marking.trained`: three networks of a few million parameters on "
            "20,000 images of Fashion-MNIST, three epochs; a PointNet on the solids of KiCad's "
            "library, in random poses. Accuracy of the test part in percent, points lost by "
            "marking against the same network unmarked (mean ± standard deviation over seeds), "
            "strength of the weakest seed in bits, and the share of the training's processor time "
            "that marking took."
        ),
        _costs(marked),
        PICTURE.format("marking_bits.svg"),
        wrapped(
            "What thieves do with inputs of their own, labelled, that the owner never used: 2,000 "
            "images, or a fifth of the solids. Lost: points against the unmarked network."
        ),
        _thefts([row for row in rows if row["thief"] != "nothing"]),
        PICTURE.format("marking_thieves.svg"),
        _worth(rows),
    ]


PICTURE = "![the same as a picture]({})"


def _trained_in() -> list[str]:
    rows = _numbers(read_rows(RESULTS / "marking_trained_in.csv"))
    if not rows:
        return []
    body = []
    for (network, thief), own in cases(rows, ("network", "thief")).items():
        body.append((network, thief, len(own), *_figures(own, rows), accepted()(own, rows)))
    return [
        "## The same networks with the mark trained in",
        wrapped(
            "`python -m benchmarks.marking.trained_in`: trained with `PassportConfig.signature()` "
            "from the same start on the same batches, every row with a bit. The same thieves; "
            "lost: points against the network trained without. 'Drowned below' is noise where the "
            "inputs have a ten-thousandth of their mean size."
        ),
        table(("network", "thief", "seeds", *FIGURES, "accepted"), body),
    ]


def _fitted() -> list[str]:
    rows = _numbers(read_rows(RESULTS / "marking_fitted.csv"))
    if not rows:
        return []
    body = []
    for (network, way, thief), own in cases(rows, ("network", "way", "thief")).items():
        strengths = (least("strength")(own, rows), least("fitted_strength")(own, rows))
        body.append((network, way, thief, mean("lost")(own, rows), *strengths))
    return [
        "## Looked at with the owner's inputs",
        wrapped(
            "`python -m benchmarks.marking.fitted`, one seed: the strength that is read plainly, "
            "and with every layer of the suspect fitted anew to what it computes on the 512 "
            "inputs that the owner marks with, which the thief has not got (`verify(inputs=)`, the "
            "best of its three ways; the strongest reading counts, 64 bits are needed). Marked "
            "after the training with the defaults, and at ten times the share of the outputs; with "
            "the mark trained in; and with it put in once more before the release, at a share of "
            "0.01. Lost: points against the network without a mark. 'Drowned below' is noise where "
            "the inputs have a ten-thousandth of their mean size."
        ),
        table(("network", "marked", "thief", "lost", "plainly", "with inputs"), body),
        _close(rows),
    ]


def _close(rows: Sequence[Row]) -> str:
    """Who is refused of the attacked networks that are still worth something."""
    close = [row for row in rows if row["thief"] != "nothing" and row["lost"] <= 5]
    plainly = sum(row["accepted"] for row in close)
    both = [row for row in close if max(row["strength"], row["fitted_strength"]) < ACCEPT_STRENGTH]
    refused = "; ".join(
        f"{row['network']}, {row['way']}, {row['thief']} ({row['lost']:.2f} points)" for row in both
    )
    return wrapped(
        f"Of {len(close)} attacked networks within five points of the unmarked one the owner is "
        f"accepted plainly in {plainly}, and in {len(close) - len(both)} with inputs"
        + (f". Refused: {refused}." if both else ".")
    )


def _costs(rows: Sequence[Row]) -> str:
    """A line for each network and setting, over the seeds: what the mark takes."""
    body = []
    for (network, asked, margin, spent), own in cases(rows, SETTING).items():
        time = f"{100 * max(row['share_of_training'] for row in own):.1f} %"
        mark = f"{asked:.0f}, {margin}, {spent}"
        body.append((network, mark, len(own), *_figures(own, rows), time))
    return table(("network", MARK, "seeds", *FIGURES, "time"), body)


def _thefts(rows: Sequence[Row]) -> str:
    """A line for each network, setting and thief, over the seeds: what is left."""
    body = []
    for case, own in cases(rows, (*SETTING, "thief")).items():
        network, asked, margin, spent, thief = case
        mark, said = f"{asked:.0f}, {margin}, {spent}", accepted()(own, rows)
        body.append((network, mark, thief, len(own), *_figures(own, rows), said))
    return table(("network", MARK, "thief", "seeds", *FIGURES, "accepted"), body)


SETTING = "network", "asked", "margin", "share"
MARK = "bits, margin, share"
FIGURES = ("accuracy", "lost", "bits", "strength")
NUMBERS = (
    *("bits", "matched", "strength", "accuracy", "lost", "share_of_training", "asked"),
    "fitted_strength",
)


def _figures(own: Sequence[Row], rows: Sequence[Row]) -> tuple[str, ...]:
    """Accuracy, points lost, bits read and the least strength of some rows."""
    matched = sum(row["matched"] for row in own) / sum(row["bits"] for row in own)
    return (
        mean("accuracy")(own, rows),
        mean("lost")(own, rows),
        f"{100 * matched:.1f} % of {own[0]['bits']:.0f}",
        least("strength")(own, rows),
    )


def _worth(rows: Sequence[Row]) -> str:
    """Whether the owner was refused where the thief's network was still worth something."""
    close = [row for row in rows if row["thief"] != "nothing" and row["lost"] <= 5]
    refused = [row for row in close if not row["accepted"]]
    if not close:
        return ""
    weakest = min(close, key=lambda row: row["strength"] / row["bits"])
    return wrapped(
        f"Of {len(close)} attacked networks within five points of the unmarked one the owner is "
        f"accepted in {len(close) - len(refused)}; the one with the least has "
        f"{weakest['strength']:.0f} bits of strength left of {weakest['bits']:.0f} "
        f"({weakest['network']}, {weakest['thief']})."
    )


def draw(folder: Path) -> None:
    """Both pictures of the networks trained here."""
    rows = _numbers(read_rows(RESULTS / "marking_trained.csv"))
    alike = [row for row in rows if (float(row["margin"]), float(row["share"])) == DEFAULT[1:]]
    Plot("asked", {"lost": "points lost", "accuracy": "accuracy (%)"}, series="network").draw(
        [row for row in alike if row["thief"] == "nothing"], folder / "marking_bits.svg"
    )
    default = [row for row in alike if row["asked"] == DEFAULT[0]]
    Plot("thief", {"lost": "points lost", "left": "strength left (%)"}, series="network").draw(
        default, folder / "marking_thieves.svg"
    )


def _numbers(rows: Sequence[Mapping[str, str]]) -> list[Row]:
    """Rows of trained networks with their numbers read, and the share of the strength left."""
    found: list[Row] = []
    for row in rows:
        read: dict[str, Any] = {
            **row,
            **{name: float(row[name]) for name in NUMBERS if name in row},
            "accepted": row["accepted"] == "True",
        }
        read["left"] = 100 * read["strength"] / read["bits"]
        found.append(read)
    return found


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
    draw(RESULTS)


if __name__ == "__main__":
    main()
