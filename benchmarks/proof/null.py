"""What the keys of strangers read in networks that nobody marked: nothing but coins.

Networks of several architectures, really trained on scikit-learn's digits and as they are drawn,
and the same with weights as hostile to a coin as weights can be: correlated, equal, zero, ternary,
of one sign, of low rank, in half precision and rounded to eight bits. A drawn key reads each of
them as the claim of its owner would. None may be accepted, the bits of each kind must be those of a
fair coin, in number and in spread, and no strength may be reached more often than it says.

    python -m benchmarks.proof.null              # writes results/null.json and null.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest, chi2
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import earlier_rows, heading, write_record
from benchmarks.proof.kin import EPOCHS, MODELS, built, tuned
from passportize.data.images import digits_data
from passportize.release.claim import claim_of
from passportize.signature.evidence import judge_evidence, read_by_name, read_evidence
from passportize.signature.model_key import ModelKey

KEYS = 30
LEVELS = (1, 2, 4, 8)


def _low_rank(weight: Tensor) -> Tensor:
    """The two leading directions of the rows, and little else."""
    rows = weight.flatten(1)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = left[:, :2] * values[:2] @ right[:2]
    thin: Tensor = (kept + 1e-6 * rows).view_as(weight)
    return thin


def _ternary(weight: Tensor) -> Tensor:
    return (weight / weight.std().clamp_min(1e-30)).round().clamp(-1, 1)


def _int8(weight: Tensor) -> Tensor:
    step = weight.abs().max().clamp_min(1e-30) / 127
    return (weight / step).round() * step


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda weight: weight,
    "correlated": lambda weight: weight.mean(0, keepdim=True) * 5 + weight * 0.2,
    "equal": lambda weight: weight[:1].expand_as(weight).clone(),
    "zero": torch.zeros_like,
    "ternary": _ternary,
    "of one sign": lambda weight: weight.abs(),
    "of low rank": _low_rank,
    "half precision": lambda weight: weight.half(),
    "eight bits": _int8,
}


def tensors_of(model: nn.Module, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The state dict of a network with every weight changed."""
    return {
        name: change(value) if value.dim() > 1 else value
        for name, value in model.state_dict().items()
    }


def measure(name: str, keys: int) -> dict[str, dict[str, Any]]:
    """All pairs of one architecture, by state of training and kind of weights."""
    fresh = built(name, 7).eval()
    networks = {"fresh": fresh, "trained": tuned(name, built(name, 0), digits_data(), EPOCHS, 0)}
    marked = pp.passportize(built(name, 1), key(0), config=pp.PassportConfig.signature())
    layout = claim_of(marked).layout
    result = {}
    number = 0
    for state, network in networks.items():
        for kind, change in WEIGHTS.items():
            tensors = tensors_of(network, change)
            matched, strengths, accepted = [], [], 0
            for _ in range(keys):
                number += 1
                drawn = ModelKey(key(number), layout)
                evidence = read_evidence(tensors, drawn, layout)
                # By name, since the look that is best of several is no coin.
                matched.append(read_by_name(tensors, drawn, layout).reading.matched)
                strengths.append(evidence.strength)
                accepted += judge_evidence(evidence, layout)[0] is True
            result[f"{state}, {kind}"] = {
                "bits": layout.bits,
                "matched": matched,
                "strengths": [round(strength, 3) for strength in strengths],
                "accepted": accepted,
            }
    return result


def key(number: int) -> pp.Passport:
    """A passport whose secret is a number, so that a run can be repeated."""
    return pp.Passport.generate("Mallory", date="2026-01-01", secret=number.to_bytes(32, "big"))


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What all pairs of some rows say together.

    `spread` is the sum of squared deviations of single pairs, in those of a fair coin, over their
    number: 1 where bits are independent. Its p-value, like that of the share, has two sides.
    """
    pairs = [(hits, row["bits"]) for row in rows for hits in row["matched"]]
    strengths = [strength for row in rows for strength in row["strengths"]]
    bits = sum(total for _, total in pairs)
    matched = sum(hits for hits, _ in pairs)
    squares = sum((hits - total / 2) ** 2 / (total / 4) for hits, total in pairs)
    tail = float(chi2.cdf(squares, len(pairs)))
    return {
        "pairs": len(pairs),
        "bits": bits,
        "matched": matched,
        "p": float(binomtest(matched, bits).pvalue),
        "spread": squares / len(pairs),
        "p of the spread": 2 * min(tail, 1 - tail),
        "strongest": max(strengths),
        "accepted": sum(row["accepted"] for row in rows),
        "reached": {
            str(level): sum(strength >= level for strength in strengths) / len(strengths)
            for level in LEVELS
        },
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    every = [row for kinds in record["models"].values() for row in kinds.values()]
    groups = {
        **{name: list(kinds.values()) for name, kinds in record["models"].items()},
        **{
            f"weights {kind}" if kind == "as they are" else kind: [
                row
                for kinds in record["models"].values()
                for name, row in kinds.items()
                if name.split(", ")[1] == kind
            ]
            for kind in WEIGHTS
        },
        "**all**": every,
    }
    lines = [
        "# Strangers' keys read coins",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, digits. A pair is a "
        "drawn key and a network that nobody marked. Spread: mean square of the pairs' deviations "
        "from a half, in those of a fair coin. Reached: share of pairs whose strength, after its "
        "price, was at least so many bits; it may be at most the number in brackets.",
        "",
        "| of | pairs | bits matched | p | spread | p | strongest | accepted | "
        + " | ".join(f"reached {level} ({100 * 2.0**-level:.1f} %)" for level in LEVELS)
        + " |",
        "|---" * (8 + len(LEVELS)) + "|",
    ]
    for name, rows in groups.items():
        found = pooled(rows)
        reached = " | ".join(f"{100 * found['reached'][str(level)]:.2f} %" for level in LEVELS)
        lines.append(
            f"| {name} | {found['pairs']:,} | {found['matched']:,} of {found['bits']:,} | "
            f"{found['p']:.2f} | {found['spread']:.3f} | {found['p of the spread']:.2f} | "
            f"{found['strongest']:.1f} | {found['accepted']} | {reached} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--keys", type=int, default=KEYS, help="for each network and kind")
    parser.add_argument("--out", type=Path, default=RESULTS / "null.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "what strangers' keys read in networks that nobody marked", "benchmarks.proof.null"
        ),
        "models": earlier_rows(arguments.out),
    }
    for name in arguments.models:
        if name not in record["models"]:
            record["models"][name] = measure(name, arguments.keys)
            write_record(arguments.out, record, table(record))
    print(table(record))


if __name__ == "__main__":
    main()
