"""What passports cost in accuracy, what they prove, and what it takes to remove them.

Questions, on the demo's recipe (a small timm ResNet, scikit-learn's digits), one row per seed:
is the released model as accurate as one trained without passports? Does the private branch work
with the owner's key and with nobody else's? Are all bits in, and how strong is the proof? What is
left after fine-tuning, pruning, rounding to 8 bits and flips of channel signs?

    python -m benchmarks.proof.protection                # writes benchmarks/results/protection.json
    python -m benchmarks.proof.protection --seeds 0 --epochs 10
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading
from passportize.attacks import flip_channel_signs, prune_weights, quantise_weights
from passportize.data.images import ImageData, batches, digits_data
from passportize.demo.recipe import accuracy, build_model, train
from passportize.release.claim import Claim
from passportize.surgery.branches import take_out_branches
from passportize.thresholds import ACCEPT_STRENGTH
from passportize.utils.files import write_atomically
from passportize.verification.strangers import strangers_accuracies, strangers_strengths

PRESETS = ("keyed", "paper", "signature")


def key(number: int) -> pp.Passport:
    """A passport whose secret is a number, so that a run can be repeated."""
    return pp.Passport.generate("Acme", date="2026-01-01", secret=number.to_bytes(32, "big"))


OWNER = key(2**200)


def protect(
    preset: str, seed: int, data: ImageData, epochs: int
) -> tuple[nn.Module, Claim, dict[str, Any]]:
    """Train with passports, save the claim, restore the plain model."""
    model = pp.passportize(build_model(seed), OWNER, config=pp.PassportConfig.preset(preset))
    if preset != "paper":  # which trains as published
        pp.embed_signature(model)
    history = train(model, data, epochs=epochs, seed=seed)
    test = (data.test_images, data.test_labels)
    row: dict[str, Any] = {
        "public": accuracy(model, *test),
        "seconds_per_step": history.step_seconds,
        "finite": history.finite,
    }
    if preset != "signature":
        row["private"] = accuracy(model, *test, branch="private")
    with tempfile.TemporaryDirectory() as folder:
        claim = pp.save_claim(model, Path(folder) / "claim.safetensors")
    take_out_branches(model)
    return model.eval(), claim, row


def proof(model: nn.Module, claim: Claim) -> dict[str, Any]:
    """Bits and strength of the owner's passport in a suspect."""
    verdict = pp.verify(model, OWNER, claim)
    return {
        "matched": verdict.matched,
        "total": verdict.total,
        "strength": round(verdict.strength, 1),
        "accepted": verdict.accepted,
        "message": verdict.message is not None,
    }


def strangers(
    model: nn.Module, claim: Claim, signatures: int, runs: int, data: ImageData
) -> dict[str, Any]:
    """The best of many strangers' signatures; private accuracy under some strangers' keys."""
    strengths = strangers_strengths(
        model.state_dict(), claim, [key(number) for number in range(signatures)]
    )
    row: dict[str, Any] = {
        "signatures": signatures,
        "highest_strength": round(max(strengths), 2),
        "accepted": sum(strength >= ACCEPT_STRENGTH for strength in strengths),
    }
    if claim.config.has_private_pass:
        test = list(batches(data.test_images, data.test_labels))
        found = strangers_accuracies(model, claim, [key(number) for number in range(runs)], test)
        row["private_accuracy"] = {
            "keys": len(found),
            "mean": round(statistics.mean(found), 2),
            "highest": round(max(found), 2),
        }
    return row


def removal(model: nn.Module, claim: Claim, data: ImageData, epochs: int) -> dict[str, Any]:
    """What is left of the proof after attempts to remove it, and what they cost the thief."""

    def fine_tune(lr: float) -> Callable[[nn.Module], object]:
        return lambda copied: train(copied, data, epochs=epochs, lr=lr, seed=99)

    attempts: dict[str, Callable[[nn.Module], object]] = {
        "none": lambda copied: None,
        "sign flips": lambda copied: flip_channel_signs(
            copied, torch.Generator().manual_seed(0), example_inputs=data.test_images[:2]
        ),
        "8-bit rounding": partial(quantise_weights, bits=8),
        **{f"fine-tuning, lr {lr}": fine_tune(lr) for lr in (0.001, 0.01, 0.1)},
        **{
            f"pruning {share:.0%}": partial(prune_weights, share=share)
            for share in (0.3, 0.5, 0.7, 0.9)
        },
    }
    rows = {}
    for name, attempt in attempts.items():
        copied = copy.deepcopy(model)
        attempt(copied)
        copied.eval()
        rows[name] = {
            "public": round(accuracy(copied, data.test_images, data.test_labels), 2),
            **proof(copied, claim),
        }
        print("  ", name, rows[name], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--signatures", type=int, default=1000)
    parser.add_argument("--strangers", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--out", type=Path, default=RESULTS / "protection.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = digits_data()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **heading(
            "accuracy, proof, strangers and removal on the demo's recipe",
            "benchmarks.proof.protection",
            f"{arguments.threads} thread(s)",
        ),
        "epochs": arguments.epochs,
        "train_images": len(data.train_images),
        "test_images": len(data.test_images),
        "rows": [],
    }
    if arguments.resume and arguments.out.exists():
        record["rows"] = json.loads(arguments.out.read_text())["rows"]
    done = {(row["seed"], row["preset"]) for row in record["rows"]}
    for seed in arguments.seeds:
        if {(seed, preset) for preset in ("plain", *PRESETS)} <= done:
            continue
        if (seed, "plain") not in done:
            plain = build_model(seed)
            history = train(plain, data, epochs=arguments.epochs, seed=seed)
            row = {
                "seed": seed,
                "preset": "plain",
                "public": round(accuracy(plain, data.test_images, data.test_labels), 2),
                "seconds_per_step": history.step_seconds,
            }
            record["rows"].append(row)
            print(row, flush=True)
        for preset in PRESETS:
            if (seed, preset) in done:
                continue
            model, claim, measured = protect(preset, seed, data, arguments.epochs)
            row = {"seed": seed, "preset": preset, **measured, **proof(model, claim)}
            first = seed == arguments.seeds[0]
            row["strangers"] = strangers(
                model, claim, arguments.signatures, arguments.strangers, data
            )
            print(row, flush=True)
            if first:
                row["removal"] = removal(model, claim, data, max(1, arguments.epochs // 2))
            record["rows"].append(row)
            record["rows"].sort(key=_place)
            text = json.dumps(record, indent=1) + "\n"
            write_atomically(arguments.out, text.encode(), overwrite=True)
    plain_mean = _mean(record, "plain", "public")
    for preset in PRESETS:
        gap = plain_mean - _mean(record, preset, "public")
        print(f"{preset}: public accuracy {gap:+.2f} points below plain (mean of seeds)")


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["seed"], ("plain", *PRESETS).index(row["preset"])


def _mean(record: dict[str, Any], preset: str, what: str) -> float:
    return statistics.mean(float(row[what]) for row in record["rows"] if row["preset"] == preset)


if __name__ == "__main__":
    main()
