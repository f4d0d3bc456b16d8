"""Likeness and aligned bits by kind of kinship: strangers, kin of one public base, and copies.

Everything is really trained on scikit-learn's digits. Four owners each mark and release a model of
every architecture. Against each stand models of other seeds trained on the same data, untrained
ones, and what the other owners released; against the first also fine-tunings of the base that it
was fine-tuned from, and copies that were fine-tuned and disguised. Nobody but a copy may be
accepted; the bits of all others, read from entries that the alignment did not look at, must be
those of a fair coin.

    python -m benchmarks.proof.kin              # resumes; writes results/kin.json and kin.md
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import earlier_rows, heading, write_record
from passportize.attacks.disguise import disguise
from passportize.data.images import ImageData, digits_data
from passportize.demo.recipe import accuracy, train
from passportize.release.claim import Claim, claim_of
from passportize.surgery.branches import take_out_branches

EPOCHS, TUNING = 8, 3
COUNTS = {"other seed": 6, "untrained": 6, "same base": 3, "copy": 2}
OWNERS = [
    pp.Passport.generate(name, date="2026-01-01", secret=(2**200 + number).to_bytes(32, "big"))
    for number, name in enumerate(("Acme", "Beta", "Gamma", "Delta"))
]
VIT = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3}
ADAMW = ("vit", "mixer", "convnext_atto")
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet10t": lambda: timm.create_model("resnet10t", num_classes=10, in_chans=1),
    "mobilenetv3_small_050": lambda: timm.create_model(
        "mobilenetv3_small_050", num_classes=10, in_chans=1
    ),
    "mobilenetv2_035": lambda: timm.create_model("mobilenetv2_035", num_classes=10, in_chans=1),
    "convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=10, in_chans=1),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, in_chans=1, **VIT
    ),
    # Its factory has no say in its sizes.
    "mixer": lambda: MlpMixer(
        num_classes=10, in_chans=1, img_size=32, patch_size=8, embed_dim=64, num_blocks=3
    ),
}  # fmt: skip


def built(name: str, seed: int) -> nn.Module:
    """A fresh model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[name]()


def tuned(name: str, model: nn.Module, data: ImageData, epochs: int, seed: int) -> nn.Module:
    """The model after some epochs of training; fine-tuning takes half of the learning rate."""
    optimizer, rate = ("adamw", 3e-3) if name in ADAMW else ("sgd", 0.05)
    rate = rate / 2 if epochs == TUNING else rate
    train(model, data, epochs=epochs, seed=seed, lr=rate, optimizer=optimizer)
    return model.eval()


@dataclass(frozen=True)
class Release:
    """What one owner released of an architecture.

    Attributes:
        owner: Which of :data:`OWNERS`.
        base: What it was fine-tuned from.
        model: It, as released.
        claim: The owner's.
    """

    owner: int
    base: nn.Module
    model: nn.Module
    claim: Claim


def released(name: str, owner: int, data: ImageData) -> Release:
    """An owner's marked fine-tuning of a base of their own."""
    base = tuned(name, built(name, owner), data, EPOCHS, owner)
    config = pp.PassportConfig.signature(margin=1.0)
    model = pp.passportize(copy.deepcopy(base), OWNERS[owner], config=config)
    pp.embed_signature(model)
    tuned(name, model, data, EPOCHS, 50 + owner)
    claim = claim_of(model)
    take_out_branches(model)
    return Release(owner, base, model.eval(), claim)


def judge(suspect: nn.Module, release: Release, data: ImageData) -> dict[str, Any]:
    """One row: plain bits, aligned bits, likeness, and the first owner's beyond the base."""
    example = data.test_images[:2]

    def verify(**given: Any) -> pp.Verdict:
        return pp.verify(
            suspect,
            OWNERS[release.owner],
            release.claim,
            released=release.model,
            example_inputs=example,
            **given,
        )

    verdict = verify()
    row: dict[str, Any] = {
        "owner": release.owner,
        "accuracy": round(accuracy(suspect, data.test_images, data.test_labels), 2),
        "plain": verdict.matched,
        "accepted": bool(verdict.accepted),
    }
    links = verdict.links
    if links is not None and links.similarity is not None:
        row |= {
            "aligned": links.aligned_matched,
            "read": links.aligned_total,
            "same entries": links.entries_matched,
            "likeness": round(links.similarity.likeness, 4),
            "p": links.similarity.p_value,
        }
    if not release.owner:
        beyond = verify(base=release.base)
        row["accepted beyond the base"] = bool(beyond.accepted)
        if beyond.links is not None and beyond.links.similarity is not None:
            row["beyond"] = round(beyond.links.similarity.likeness, 4)
    return row


def measure(name: str, data: ImageData, counts: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """All suspects of one architecture."""
    releases = [released(name, owner, data) for owner in range(len(OWNERS))]
    first = releases[0]

    def copied(number: int) -> nn.Module:
        suspect = tuned(name, copy.deepcopy(first.model), data, TUNING, 400 + number)
        generator = torch.Generator().manual_seed(number)
        disguise(suspect, generator, example_inputs=data.test_images[:2])
        return suspect

    make: dict[str, Callable[[int], nn.Module]] = {
        "other seed": lambda number: tuned(
            name, built(name, 100 + number), data, EPOCHS, 100 + number
        ),
        "untrained": lambda number: built(name, 200 + number).eval(),
        "same base": lambda number: tuned(
            name, copy.deepcopy(first.base), data, TUNING, 300 + number
        ),
        "copy": copied,
    }
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*counts, OTHERS)}
    for kind, count in counts.items():
        for number in range(count):
            suspect = make[kind](number)
            against = releases if kind in UNRELATED else releases[:1]
            found[kind] += [judge(suspect, release, data) for release in against]
    for release in releases:
        found[OTHERS] += [
            judge(other.model, release, data) for other in releases if other is not release
        ]
    return found


UNRELATED = ("other seed", "untrained")
OTHERS = "another owner's"


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Kin is not copy",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, digits. Aligned "
        "bits: share of those that were read, mean over suspects, on entries that the alignment "
        "did not look at. Deviation: of all aligned bits from a half, in standard deviations of a "
        "fair coin (suspects of the same base share its bits, so three of them say little more "
        "than one). Likeness: least and most over suspects, and against the first owner's "
        "release beyond its base.",
        "",
        "| model | suspects | pairs | accuracy | aligned bits | deviation | likeness "
        "| beyond the base | accepted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    strangers = {"bits": 0, "read": 0, "pairs": 0, "accepted": 0}
    for name, kinds in record["models"].items():
        for kind, rows in kinds.items():
            judged = [row for row in rows if "aligned" in row]
            bits, read = (sum(row[key] for row in judged) for key in ("aligned", "read"))
            accepted = sum(row["accepted"] for row in rows)
            if kind != "copy":
                strangers["bits"] += bits
                strangers["read"] += read
                strangers["pairs"] += len(rows)
                strangers["accepted"] += accepted
            deviation = (bits - read / 2) / math.sqrt(max(1, read) / 4)
            spans = [
                f"{min(values):.3f} to {max(values):.3f}" if values else ""
                for key in ("likeness", "beyond")
                for values in [[row[key] for row in judged if key in row]]
            ]
            mean = sum(row["accuracy"] for row in rows) / len(rows)
            share = f"{100 * bits / read:.1f} %" if read else "read plainly"
            lines.append(
                f"| {name} | {kind} | {len(rows)} | {mean:.1f} | {share} | "
                f"{deviation:+.1f} | {spans[0]} | {spans[1]} | {accepted} |"
            )
    if strangers["read"]:
        all_bits = strangers["bits"] - strangers["read"] / 2
        lines += [
            "",
            f"All {strangers['pairs']} pairs of a release and what is no copy of it: "
            f"{strangers['bits']} of {strangers['read']} bits, "
            f"{all_bits / math.sqrt(strangers['read'] / 4):+.1f} standard deviations from a half; "
            f"{strangers['accepted']} accepted.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "kin.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = digits_data()
    record: dict[str, Any] = {
        **heading(
            "who is accepted through the released weights, by kind of kinship",
            "benchmarks.proof.kin",
        ),
        "models": earlier_rows(arguments.out),
    }
    for name in arguments.models:
        if name in record["models"]:
            continue
        record["models"][name] = measure(name, data, COUNTS)
        print(table(record), flush=True)
        write_record(arguments.out, record, table(record))


if __name__ == "__main__":
    main()
