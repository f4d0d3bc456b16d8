"""How well do released weights and the claim predict the bits, without the key?

Small networks are trained on scikit-learn's digits, each with a key of its own. From what anybody
sees of a channel (its row's length and moments, its norm's factors and statistics, as ranks within
the layer) a classifier learns the bits of all networks but one, and then predicts those of that
one. Half of them is chance. Predicting a bit does not say how to turn it over: that takes the
vectors.

    python -m benchmarks.proof.predictions       # writes results/predictions.json and .md
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from benchmarks.proof.detectors import SIZE
from benchmarks.proof.small_networks import Recipe, small_network
from passportize.data.images import ImageData, digits_data
from passportize.demo.recipe import train
from passportize.release.claim import claim_of
from passportize.signature.model_key import ModelKey
from passportize.surgery.branches import take_out_branches

WIDTH = 24
COUNT = 40
PRESETS = ("signature", "keyed")
ROWS = ("length", "mean", "kurtosis", "largest entry")
FACTORS = ("scale", "shift")
STATISTICS = ("running mean", "running variance")
LOOKS: dict[str, tuple[str, ...]] = {
    "rows": ROWS,
    "norm factors": FACTORS,
    "running statistics": STATISTICS,
    "all of these": (*ROWS, *FACTORS, *STATISTICS),
}


def channels_of(preset: str, seed: int, data: ImageData) -> list[dict[str, list[float]]]:
    """Of every layer of one network: its bits, and what anybody sees of its channels, as ranks."""
    model = small_network(WIDTH, seed)
    passport = pp.Passport.generate("Acme", date="2026-11-28", secret=seed.to_bytes(32, "big"))
    pp.passportize(model, passport, config=pp.PassportConfig.preset(preset))
    pp.embed_signature(model)
    train(model, data, epochs=Recipe().epochs, seed=seed)
    claim = claim_of(model)
    bits = ModelKey(passport, claim.layout).bits().split([site.bits for site in claim.sites])
    take_out_branches(model)
    return [
        {"bits": part.tolist()} | _seen(model, site.name, site.anchor.parts[0].weight)
        for part, site in zip(bits, claim.sites, strict=True)
        if site.anchor is not None
    ]


def _seen(model: nn.Module, norm_name: str, weight: str) -> dict[str, list[float]]:
    norm = model.get_submodule(norm_name)
    rows = model.get_parameter(weight).detach().flatten(1).double()
    lengths = torch.linalg.vector_norm(rows, dim=1)
    unit = rows / lengths[:, None]
    values = {
        "length": lengths,
        "mean": unit.mean(1),
        "kurtosis": unit.pow(4).mean(1),
        "largest entry": unit.abs().amax(1),
    }
    if isinstance(norm, nn.BatchNorm2d):
        named = zip(
            (*FACTORS, *STATISTICS),
            (norm.weight, norm.bias, norm.running_mean, norm.running_var),
            strict=True,
        )
        values |= {name: value.detach().double() for name, value in named if value is not None}
    return {name: _ranks(value) for name, value in values.items()}


def _ranks(values: Tensor) -> list[float]:
    places = values.argsort().argsort().double() / max(1, len(values) - 1) - 0.5
    return [round(float(place), 4) for place in places]


def predicted(
    networks: list[list[dict[str, list[float]]]], look: tuple[str, ...]
) -> tuple[int, int]:
    """Bits of every network that a classifier guesses which has seen the others, and their number.

    Layers have a classifier each; what a layer lacks (the classifier has no norm) is left out.
    """
    hits = total = 0
    for layers in zip(*networks, strict=True):
        if not set(look) <= set(layers[0]):
            continue
        inputs = [np.array([layer[name] for name in look]).T for layer in layers]
        # Sizes of ranks may say something, too.
        inputs = [np.concatenate((part, np.abs(part)), 1) for part in inputs]
        bits = [np.array(layer["bits"]) for layer in layers]
        for left_out in range(len(layers)):
            others = [place for place in range(len(layers)) if place != left_out]
            classifier = LogisticRegression(C=1.0).fit(
                np.concatenate([inputs[place] for place in others]),
                np.concatenate([bits[place] for place in others]),
            )
            hits += int((classifier.predict(inputs[left_out]) == bits[left_out]).sum())
            total += len(bits[left_out])
    return hits, total


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What can be guessed without the key",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, digits, "
        f"{record['count']} networks of each preset, each with a key of its own. Bits of a network "
        "guessed by a classifier that has seen all others, in percent, and deviations from a half "
        "in those of a fair coin. The claim is not in the table: but for digests it is the same "
        "for every key (`tests/release/test_claim.py`).",
        "",
        "| from | " + " | ".join(record["guessed"]) + " |",
        "|---" * (1 + len(record["guessed"])) + "|",
    ]
    for look in LOOKS:
        cells = []
        for guesses in record["guessed"].values():
            hits, total = guesses[look]["hits"], guesses[look]["bits"]
            deviations = (hits - total / 2) / math.sqrt(total / 4)
            cells.append(f"{100 * hits / total:.2f} of {total:,} ({deviations:+.1f})")
        lines.append(f"| {look} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="networks of each preset")
    parser.add_argument("--out", type=Path, default=RESULTS / "predictions.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = digits_data(SIZE)
    guessed = {}
    for preset in PRESETS:
        networks = [channels_of(preset, seed, data) for seed in range(arguments.count)]
        guessed[preset] = {
            name: dict(zip(("hits", "bits"), predicted(networks, look), strict=True))
            for name, look in LOOKS.items()
        }
    record = {
        **heading(
            "how well released weights predict the bits, without the key",
            "benchmarks.proof.predictions",
        ),
        "count": arguments.count,
        "guessed": guessed,
    }
    write_record(arguments.out, record, table(record))
    print(table(record))


if __name__ == "__main__":
    main()
