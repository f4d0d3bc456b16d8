"""Can somebody without key and data tell a marked network from an unmarked one?

Many small networks of several widths are trained on scikit-learn's digits by one recipe: plain,
with `signature`, with `keyed`, and, as a control that must be seen, with `signature` on vectors
that all rows of a layer have in common. A detector is a classifier that learns from what it looks
at (`weight_features.py`, in deviations of the networks of the same width) which networks are
marked, and is asked about networks that it has not seen. AUC: the share of pairs of a marked and a
plain network that it orders rightly, .5 for a coin; the interval is a bootstrap's of 95 %.

`--recipes any` asks the same of somebody who does not know how the owner trains: every network,
plain or marked, draws learning rate, batch and number of epochs of its own, and the detector learns
from such networks.

    python -m benchmarks.proof.detectors --features FILE     # goes on with the file; writes
    python -m benchmarks.proof.detectors --features OTHER --recipes any    # detectors.json and .md
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from benchmarks.proof.small_networks import PLAIN, SHARED, WIDTHS, Recipe, trained
from benchmarks.proof.weight_features import factor_features, weight_features
from passportize.data.images import ImageData, digits_data
from passportize.demo.recipe import accuracy

KINDS = (PLAIN, "signature", "keyed", SHARED)
COUNTS = {PLAIN: 180, "signature": 162, "keyed": 30, SHARED: 18}
"""How many of each: few of those that are seen at once."""
ANY_COUNTS = {PLAIN: 102, "keyed": 102}
"""How many of each where every network has a recipe of its own."""
SIZE = 16
RECIPES = "4 to 9 epochs, a learning rate within half and twice .05, batches of 32 to 96"
FOLDS = 10
LOOKS = ("spectrum", "humps", "windows", "squares", "row lengths", "single entries")
EVERYTHING = "all that reads weights"


def measured(kind: str, width: int, seed: int, data: ImageData, recipe: Recipe) -> dict[str, Any]:
    """Features of one network, and how good it is."""
    model = trained(kind, width, seed, data, recipe)
    return {
        "kind": kind,
        "width": width,
        "seed": seed,
        "recipe": asdict(recipe),
        "accuracy": round(accuracy(model, data.test_images, data.test_labels), 2),
        "features": {
            name: [float(f"{value:.6g}") for value in values]
            for name, values in (weight_features(model) | factor_features(model)).items()
        },
    }


def features(rows: Sequence[dict[str, Any]], looks: Sequence[str]) -> np.ndarray:
    """``[networks, features]``, in deviations of the networks of the same width.

    A look that small networks give nothing to look at (windows of long rows) says 0 of them.
    """
    lengths = {look: max(len(row["features"].get(look, [])) for row in rows) for look in looks}
    table = np.array(
        [
            [
                value
                for look in looks
                for value in row["features"].get(look, [math.nan] * lengths[look])
            ]
            for row in rows
        ]
    )
    for width in WIDTHS:
        same = np.array([row["width"] == width for row in rows])
        if not same.any() or np.isnan(table[same]).any(axis=0).all():
            continue
        part = table[same]
        table[same] = (part - part.mean(0)) / np.maximum(part.std(0), 1e-12)
    whole: np.ndarray = np.nan_to_num(table)
    return whole


def detection(
    marked: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], looks: Sequence[str]
) -> dict[str, float]:
    """AUC of a detector on networks that it did not learn from, with a bootstrap's interval."""
    table = features([*marked, *plain], looks)
    truth = np.array([1] * len(marked) + [0] * len(plain))
    if len(looks) > 1:
        classifier: Any = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    else:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    said = cross_val_predict(classifier, table, truth, cv=folds, method="predict_proba")[:, 1]
    interval = bootstrap(
        (said[truth == 1], said[truth == 0]),
        _auc,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return {
        "auc": round(_auc(said[truth == 1], said[truth == 0]), 3),
        "low": round(float(interval.low), 3),
        "high": round(float(interval.high), 3),
    }


def _auc(marked: np.ndarray, plain: np.ndarray) -> float:
    truth = np.array([1] * len(marked) + [0] * len(plain))
    return float(roc_auc_score(truth, np.concatenate((marked, plain))))


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Every kind of marked networks against the plain ones, by every detector."""
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    detectors = {
        **{look: (look,) for look in LOOKS},
        EVERYTHING: LOOKS,
        "norm factors": ("norm factors",),
    }
    return {
        kind: {
            name: detection(by_kind[kind], by_kind[PLAIN], looks)
            for name, looks in detectors.items()
        }
        for kind in KINDS[1:]
        if len(by_kind[kind]) >= FOLDS and len(by_kind[PLAIN]) >= FOLDS
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Nobody can tell",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, digits. AUC of "
        "detectors that read what anybody can read in a released network, asked about networks "
        "that they did not learn from, with the interval of 95 %; .5 is a coin.",
        "",
        f"All networks are trained by one recipe: {_counted(record['networks'])}. Shared vectors "
        "are the control: what the published scheme does shows.",
        "",
        *_columns(record["detectors"]),
    ]
    if any_recipe := record.get("any recipe"):
        lines += [
            "",
            f"Every network has a recipe of its own ({any_recipe['recipes']}; "
            f"`{any_recipe['command']}`): {_counted(any_recipe['networks'])}.",
            "",
            *_columns(any_recipe["detectors"]),
        ]
    return "\n".join(lines) + "\n"


def _counted(networks: dict[str, Any]) -> str:
    return ", ".join(
        f"{of_kind['count']} {kind} networks ({of_kind['accuracy']:.1f} %)"
        for kind, of_kind in networks.items()
    )


def _columns(detectors: dict[str, Any]) -> list[str]:
    """A row for each detector, a column for each kind of marked networks."""
    names: list[str] = list(next(iter(detectors.values()), {}))
    return [
        "| detector | " + " | ".join(detectors) + " |",
        "|---" * (1 + len(detectors)) + "|",
        *(
            f"| {name} | "
            + " | ".join(
                f"{row[name]['auc']:.3f} ({row[name]['low']:.3f} to {row[name]['high']:.3f})"
                for row in detectors.values()
            )
            + " |"
            for name in names
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "detectors.json")
    parser.add_argument("--features", type=Path, required=True, help="file that a run goes on with")
    parser.add_argument("--recipes", choices=("one", "any"), default="one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    any_recipe = arguments.recipes == "any"
    rows = _measure_all(arguments.features, any_recipe)
    command = "benchmarks.proof.detectors" + (" --recipes any" if any_recipe else "")
    part = {
        **heading("can a marked network be told from an unmarked one", command),
        "networks": {
            kind: {
                "count": len(of_kind),
                "accuracy": sum(row["accuracy"] for row in of_kind) / len(of_kind),
            }
            for kind in KINDS
            if (of_kind := [row for row in rows if row["kind"] == kind])
        },
        "detectors": judged(rows),
    }
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if any_recipe:
        record["any recipe"] = {**part, "recipes": RECIPES}
    else:
        record |= part
    write_record(arguments.out, record, table(record))
    print(table(record))


def _measure_all(path: Path, any_recipe: bool) -> list[dict[str, Any]]:
    """Features of all networks; what the file has already is not trained again."""
    data = digits_data(SIZE)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["kind"], row["seed"]) for row in rows}
    counts = ANY_COUNTS if any_recipe else COUNTS
    for number, kind in itertools.product(range(max(counts.values())), counts):
        # No two networks begin with the same weights, so that nothing is told by likeness.
        seed = 1000 * KINDS.index(kind) + number
        if (kind, seed) in done or number >= counts[kind]:
            continue
        recipe = Recipe.drawn(seed) if any_recipe else Recipe()
        rows.append(measured(kind, WIDTHS[number % len(WIDTHS)], seed, data, recipe))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


if __name__ == "__main__":
    main()
