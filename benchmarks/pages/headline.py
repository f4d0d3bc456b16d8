"""The one table of README.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.pages.markdown import table, wrapped

Record = Mapping[str, Any]
PRESETS = ("plain", "keyed", "signature", "paper")
MODEL = "resnet18"
ATTEMPTS = {
    "fine-tuning, lr 0.1": "fine-tuning at learning rate 0.1",
    "sign flips": "sign flips that change no output",
}


def headline(records: Mapping[str, Record]) -> str:
    """What passports cost and prove, preset by preset, and where the numbers are from.

    Args:
        records: The results ``protection``, ``cost`` and ``demo``.
    """
    protection = records["protection"]
    of_preset = {
        preset: [row for row in protection["rows"] if row["preset"] == preset] for preset in PRESETS
    }

    def cells(of: Callable[[Sequence[Record]], str]) -> list[str]:
        return [of(rows) for rows in of_preset.values()]

    rows = of_preset["keyed"]
    steps = next(run for run in records["cost"]["runs"] if run["model"] == MODEL)["ratios"]
    needed = records["demo"]["verdict"]["accept_strength"]
    found = [
        ["accuracy of the released model (%)", *cells(lambda rows: _mean(rows, "public"))],
        ["private branch (%)", *cells(lambda rows: _mean(rows, "private"))],
        ["private branch, strangers' keys (%; chance: 10)", *cells(_strangers_accuracy)],
        [
            f"strongest signature of {rows[0]['strangers']['signatures']:,} strangers "
            f"(bits; {needed:.0f} are needed)",
            *cells(_strongest_stranger),
        ],
        *(
            [f"bits left after {said}, of {rows[0]['total']}", *cells(_bits_left(attempt))]
            for attempt, said in ATTEMPTS.items()
        ),
        [
            f"training step of {MODEL}, times the plain one",
            "1",
            *(f"{steps[preset]['median']:.2f}" for preset in PRESETS[1:]),
        ],
    ]
    head = ["", PRESETS[0], *(f"`{preset}`" for preset in PRESETS[1:])]
    about = (
        f"A small ResNet on handwritten digits, {protection['epochs']} epochs, {len(rows)} seeds "
        "([`protection.json`](benchmarks/results/protection.json)), and a training step on one CPU "
        "thread, in processor time ([`cost.json`](benchmarks/results/cost.json)). Accuracies are "
        "means over the seeds; the attempts to remove the signature were made on the first; bold: "
        "refused."
    )
    return f"{wrapped(about)}\n\n{table(head, found)}"


def _mean(rows: Sequence[Record], what: str) -> str:
    found = [row[what] for row in rows if what in row]
    return f"{statistics.mean(found):.2f}" if found else ""


def _strangers_accuracy(rows: Sequence[Record]) -> str:
    found = [row["strangers"].get("private_accuracy") for row in rows if "strangers" in row]
    means = [accuracy["mean"] for accuracy in found if accuracy]
    return f"{statistics.mean(means):.2f}" if means else ""


def _strongest_stranger(rows: Sequence[Record]) -> str:
    found = [row["strangers"]["highest_strength"] for row in rows if "strangers" in row]
    return f"{max(found):.1f}" if found else ""


def _bits_left(attempt: str) -> Callable[[Sequence[Record]], str]:
    def of(rows: Sequence[Record]) -> str:
        found = [row["removal"][attempt] for row in rows if "removal" in row]
        if not found:
            return ""
        left = found[0]
        return f"{left['matched']}" if left["accepted"] else f"**{left['matched']}**"

    return of
