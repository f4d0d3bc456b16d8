"""What is left of a proof after disguises that change no output, read plainly and aligned.

Channels are permuted, rescaled over four decades (NeuronScale) and mirrored, alone, together, and
together with fine-tuning. Every suspect is judged plainly and, with the released weights, through
two links: key -> released weights, released weights -> suspect. Controls are models of the same
architecture from other seeds, trained on the same data and untrained.

    python -m benchmarks.proof.disguises         # writes results/disguises.json and .md
    python -m benchmarks.proof.disguises --models resnet10t
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.data.images import ImageData, digits_data
from passportize.demo.recipe import accuracy, build_model, train
from passportize.release.claim import Claim, claim_of
from passportize.surgery.branches import take_out_branches
from passportize.thresholds import LINK_LIKENESS, LINK_P_VALUE

OWNER = pp.Passport.generate("Acme", date="2026-01-01", secret=(2**200).to_bytes(32, "big"))
DECADES = 2.0
MODELS: dict[str, tuple[str, int]] = {
    "resnet10t": ("keyed", 20),
    "mobilenetv3_small_050": ("signature", 10),
}


def build(name: str, seed: int) -> nn.Module:
    """A model for the digits: that of the demo, or timm's of this name."""
    if name == "resnet10t":
        return build_model(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, num_classes=10, in_chans=1)
    return model


def protect(name: str, data: ImageData) -> tuple[nn.Module, Claim]:
    """Train with a passport, and restore the plain model."""
    preset, epochs = MODELS[name]
    config = pp.PassportConfig.preset(preset)
    model = pp.passportize(build(name, 0), OWNER, config=config)
    train(model, data, epochs=epochs, seed=0)
    claim = claim_of(model)
    take_out_branches(model)
    return model.eval(), claim


def suspects(name: str, released: nn.Module, data: ImageData) -> dict[str, Callable[[], nn.Module]]:
    """Every suspect, made when it is asked for."""
    example = data.test_images[:2]

    def disguise(model: nn.Module, permute: bool, decades: float, flip: float) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        if permute:
            permute_channels(model, generator, example_inputs=example)
        if decades or flip:
            scale_neurons(model, generator, decades=decades, flip=flip, example_inputs=example)
        return model

    def tuned(model: nn.Module, factor: float) -> nn.Module:
        train(model, data, epochs=5, lr=0.05 * factor, seed=99)
        return model.eval()

    def other(seed: int, trained: bool) -> nn.Module:
        model = build(name, seed)
        if trained:
            train(model, data, epochs=MODELS[name][1], seed=seed)
        return model.eval()

    def copied() -> nn.Module:
        return copy.deepcopy(released)

    return {
        "unchanged": copied,
        "permutation": lambda: disguise(copied(), True, 0.0, 0.0),
        "neuron scale": lambda: disguise(copied(), False, DECADES, 0.0),
        "sign flip": lambda: disguise(copied(), False, 0.0, 0.5),
        "all three": lambda: disguise(copied(), True, DECADES, 0.5),
        "fine-tuning at 0.1 of the learning rate, all three": lambda: disguise(
            tuned(copied(), 0.1), True, DECADES, 0.5
        ),
        "fine-tuning at the full learning rate, all three": lambda: disguise(
            tuned(copied(), 1.0), True, DECADES, 0.5
        ),
        "other seed 1, same data": lambda: other(1, True),
        "other seed 2, same data": lambda: other(2, True),
        "other seed 3, untrained": lambda: other(3, False),
    }


def judge(model: nn.Module, released: nn.Module, claim: Claim, data: ImageData) -> dict[str, Any]:
    """One row: accuracy, the plain reading, and the two links."""
    plain = pp.verify(model, OWNER, claim)
    start = time.process_time()
    verdict = pp.verify(model, OWNER, claim, released=released, example_inputs=data.test_images[:2])
    row: dict[str, Any] = {
        "accuracy": round(accuracy(model, data.test_images, data.test_labels), 2),
        "plain": {"matched": plain.matched, "total": plain.total, "accepted": plain.accepted},
        "accepted": verdict.accepted,
    }
    links = verdict.links
    if links is not None and links.similarity is not None:
        row["links"] = {
            "released_strength": round(links.released_strength, 1),
            "likeness": round(links.similarity.likeness, 4),
            "chance": round(links.similarity.chance, 4),
            "p_value": links.similarity.p_value,
            "rows": links.similarity.rows,
            "moved": links.moved,
            "channels": links.channels,
            "aligned_matched": links.aligned_matched,
            "aligned_total": links.aligned_total,
            "seconds": round(time.process_time() - start, 1),
        }
    return row


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Disguises that change no output",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, digits, owner's "
        "seed 0. Plain: bits read as they stand. Likeness and p: the link from the released "
        f"weights to the suspect, {LINK_LIKENESS:g} and {LINK_P_VALUE:g} needed. Aligned bits are "
        "information only.",
        "",
        "| model | suspect | accuracy | plain bits | | likeness | p | aligned bits | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    words = {True: "accepted", False: "refused", None: "open"}
    for name, model in record["models"].items():
        for suspect, row in model["suspects"].items():
            plain, links = row["plain"], row.get("links")
            found = ("", "", "")
            if links is not None:
                bits = f"{links['aligned_matched']} / {links['aligned_total']}"
                found = (f"{links['likeness']:.3f}", f"{links['p_value']:.4f}", bits)
            cells = (
                name,
                suspect,
                f"{row['accuracy']:.2f}",
                f"{plain['matched']} / {plain['total']}",
                words[plain["accepted"]],
                *found,
                words[row["accepted"]],
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "disguises.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = digits_data()
    record: dict[str, Any] = {
        **heading(
            "plain and aligned reading after disguises that change no output",
            "benchmarks.proof.disguises",
            f"{arguments.threads} thread(s)",
        ),
        "models": {},
    }
    for name in arguments.models:
        preset, epochs = MODELS[name]
        released, claim = protect(name, data)
        rows: dict[str, Any] = {}
        record["models"][name] = {"preset": preset, "epochs": epochs, "suspects": rows}
        for suspect, make in suspects(name, released, data).items():
            rows[suspect] = judge(make(), released, claim, data)
            print(name, suspect, rows[suspect], flush=True)
            write_record(arguments.out, record, table(record))


if __name__ == "__main__":
    main()
