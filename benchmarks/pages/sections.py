"""The sections of docs/results.md that are tables, each from one committed record."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.pages.markdown import table

STRANGERS = {
    "strangers_private": "private branch with strangers' keys",
    "strangers_private_fitted": "the same with statistics fitted to each key",
}
"""What the demo measured of strangers; whether it fitted statistics depends on its version."""


def source(record: dict[str, Any], extra: str = "") -> str:
    """How the numbers came about."""
    return f"`{record['command']}` on {record['machine']}, torch {record['torch']}{extra}."


def demo(record: dict[str, Any]) -> str:
    """What `make demo` shows."""
    verdict, bits = record["verdict"], record["bits"]
    accuracies = (record[f"{which}_accuracy"] for which in ("plain", "public", "private"))
    rows = [
        [
            "accuracy without passports / public / private branch",
            " / ".join(f"{value:.2f}" for value in accuracies) + " %",
        ],
        [
            "bits that match; after the thief's fine-tuning",
            f"{verdict['matched']} of {bits}; {record['fine_tuned_matched']} of {bits}",
        ],
        *(
            [f"{said}, {len(record[which])} keys (chance: 10 %)", _mean_and_highest(record[which])]
            for which, said in STRANGERS.items()
            if which in record
        ),
        [
            f"strongest signature of {record['strangers']:,} strangers "
            f"({verdict['accept_strength']:.0f} bits are needed)",
            f"{record['highest_strength']:.1f} bits",
        ],
    ]
    return "\n\n".join(
        [
            "## The demo",
            f"A small timm ResNet on {record['data']}, {record['epochs']} epochs, one seed, "
            f"{record['processor_seconds']:.0f} seconds of processor time.",
            table(["", ""], rows),
            source(record),
        ]
    )


def _mean_and_highest(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} % in the mean, {max(values):.1f} % at most"


def cost(record: dict[str, Any]) -> str:
    """Step cost of each preset."""
    runs = sorted(record["runs"], key=lambda run: (-run["image_size"], run["model"]))
    labels = list(dict.fromkeys(label for run in runs for label in run["ratios"]))
    rows = []
    for label in labels:
        cells = []
        for run in runs:
            value, limit = run["ratios"].get(label), run["limits"].get(label)
            cell = ""
            if value:
                spread = f"{value['quartile_1']:.2f} - {value['quartile_3']:.2f}"
                cell = f"{value['median']:.3f} ({spread})" + (f", aim {limit:g}" if limit else "")
            cells.append(cell)
        rows.append([label, *cells])
    kinds = list(next(iter(record["operations"].values())))
    operations = [
        [model, *(f"{counts[kind]:g}" for kind in kinds)]
        for model, counts in record["operations"].items()
    ]
    heads = [f"{run['model']}, {run['image_size']} px" for run in runs]
    sources = {
        run["command"]: source(
            run,
            f"; batch {run['batch']} at {run['image_size']} pixels, "
            f"{run['rounds']} rounds of {run['steps_per_round']} steps{run.get('note', '')}",
        )
        for run in runs
    }
    return "\n\n".join(
        [
            "## Cost of a training step",
            "Multiples of the plain step (median and quartiles); 'plain again' is a second one. "
            "'plain, as many samples' and 'plain, twice the batch' are plain steps on as many "
            "samples as `keyed` and `keyed, whole batch` send through the model: what these "
            "samples cost by themselves. The aim is 1.05 times one plus the share of the batch. "
            "'last stage': only the last stage is bound, and the trunk before it runs once.",
            table(["", *heads], rows),
            *sources.values(),
            "Operations of a plain step, forward and backward without views, and multiples of them "
            "in steps with the sign loss and without. The aim is 2.5 in every step; a test holds "
            "it.",
            table(["", *kinds], operations),
        ]
    )


def protection(record: dict[str, Any]) -> str:
    """Accuracy, proof, strangers, removal."""
    rows = record["rows"]
    presets = list(dict.fromkeys(row["preset"] for row in rows))

    def values(preset: str, what: str) -> list[float]:
        return [row[what] for row in rows if row["preset"] == preset and what in row]

    def mean(preset: str, what: str) -> str:
        found = values(preset, what)
        each = ", ".join(f"{value:.2f}" for value in found)
        return f"{statistics.mean(found):.2f} ({each})" if found else ""

    def bits(preset: str) -> str:
        found = [
            (row["matched"], row["total"])
            for row in rows
            if row["preset"] == preset and "total" in row
        ]
        return ", ".join(f"{matched} / {total}" for matched, total in found)

    accuracies = [
        [preset, mean(preset, "public"), mean(preset, "private"), bits(preset)]
        for preset in presets
    ]
    strangers = []
    for row in rows:
        if "strangers" in row:
            found = row["strangers"]
            private = found.get("private_accuracy")
            strangers.append(
                [
                    row["preset"],
                    row["seed"],
                    found["signatures"],
                    found["accepted"],
                    found["highest_strength"],
                    f"{private['mean']} / {private['highest']}" if private else "",
                ]
            )
    removal = []
    attacked = {row["preset"]: row["removal"] for row in rows if "removal" in row}
    names = list(next(iter(attacked.values()), {}))
    for name in names:
        cells = []
        for measured in attacked.values():
            cell = measured[name]
            cells.append(
                f"{cell['public']:.2f} %, {cell['matched']} / {cell['total']}, "
                f"{'accepted' if cell['accepted'] else 'refused'}"
            )
        removal.append([name, *cells])
    images = f"{record['train_images']} images to train, {record['test_images']} to test"
    first = f"; {record['epochs']} epochs, {images}"
    return "\n\n".join(
        [
            "## Accuracy and proof",
            "The demo's recipe: a small timm ResNet on scikit-learn's digits. "
            "Accuracy in percent, mean and each seed.",
            table(["", "public branch", "private branch", "bits matched"], accuracies),
            "Strangers: passports that the models were not trained with.",
            table(
                [
                    "preset",
                    "seed",
                    "signatures tried",
                    "accepted",
                    "highest strength (bits)",
                    "private accuracy, mean / highest (%)",
                ],
                strangers,
            ),
            "Removal: public accuracy after the attempt, bits of the owner that are left, verdict.",
            table(["attempt", *attacked], removal),
            source(record, first),
        ]
    )


def stability(record: dict[str, Any]) -> str:
    """Learning rates."""
    presets = list(dict.fromkeys(row["preset"] for row in record["rows"]))
    settings = list(dict.fromkeys((row["optimizer"], row["lr"]) for row in record["rows"]))
    rows = []
    for optimizer, lr in settings:
        cells = []
        for preset in presets:
            found = [
                row
                for row in record["rows"]
                if (row["optimizer"], row["lr"], row["preset"]) == (optimizer, lr, preset)
            ]
            if not found:
                cells.append("")
                continue
            row = found[0]
            text = f"{row['public']:.1f}"
            if "private" in row:
                text += f" / {row['private']:.1f}"
            if "bits" in row:
                text += f", bits {100 * row['bits']:.1f}"
            cells.append(text if row["finite"] else f"**not finite** ({text})")
        rows.append([optimizer, lr, *cells])
    return "\n\n".join(
        [
            "## Stability",
            "Public / private accuracy and share of bits in, in percent, after a short training at "
            "each learning rate.",
            table(["optimizer", "highest learning rate", *presets], rows),
            source(record, f"; {record['epochs']} epochs"),
        ]
    )
