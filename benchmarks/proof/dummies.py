"""Channels that a thief adds, taken out again with the released weights.

The three kinds of "Rethinking White-Box Watermarks on Deep Learning Models under Neural Structural
Obfuscation" (USENIX Security 2023), at three shares of the channels that are there; all three at
once below the full disguise of ``symmetries``; the same with int8 on top, and with noise of 30 % of
every row below (beside the same without dummies) and on top; and a stranger of the same
architecture that was widened likewise. Models are small ones, drawn at random and marked in closed
form as there.

    python -m benchmarks.proof.dummies     # resumes; writes results/dummies.json and .md
    python -m benchmarks.proof.dummies --models resnet
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import ConvNormAct
from timm.models.densenet import DenseNet
from timm.models.inception_v3 import InceptionA
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import earlier_rows, heading, write_record
from benchmarks.proof.symmetries import NOISE, OWNER, as_trained, judge
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.release.claim import claim_of
from passportize.surgery.branches import take_out_branches
from tests.support.widths import noised, rounded


def _inception() -> nn.Module:
    """Two blocks of Inception v3, of four branches each."""
    return nn.Sequential(
        ConvNormAct(3, 32, 3),
        InceptionA(32, 32, ConvNormAct),
        InceptionA(256, 32, ConvNormAct),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


SHARES = (0.05, 0.2, 0.5)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (
        lambda: ResNet(BasicBlock, (2, 2, 2, 2), num_classes=10, channels=(16, 32, 48, 64)),
        64,
    ),
    "densenet": (lambda: DenseNet(growth_rate=16, block_config=(2, 3, 3), num_classes=10), 64),
    "vit": (
        lambda: VisionTransformer(
            img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=10
        ),
        32,
    ),
    "inception": (_inception, 32),
    "mobilenetv2_035": (lambda: timm.create_model("mobilenetv2_035", num_classes=10), 64),
}


def measure(name: str) -> dict[str, Any]:
    """All suspects of one architecture."""
    make, size = MODELS[name]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    config = pp.PassportConfig.signature()
    released = pp.passportize(as_trained(make, 0), OWNER, config=config, example_inputs=x)
    pp.embed_signature(released)
    claim = claim_of(released)
    take_out_branches(released)
    released.eval()
    added: dict[str, int] = {}

    def widened(which: str, model: nn.Module, *kinds: str, share: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        counts = [add_dummy_neurons(model, kind, share, generator, x) for kind in kinds]
        added[which] = sum(counts)
        return model

    def disguised(which: str, model: nn.Module, *kinds: str) -> nn.Module:
        widened(which, model, *kinds)
        disguise(model, torch.Generator().manual_seed(3), example_inputs=x)
        return model

    def stolen() -> nn.Module:
        return copy.deepcopy(released)

    suspects: dict[str, Callable[[str], nn.Module]] = {
        f"{kind}, {share}": functools.partial(
            lambda which, kind, share: widened(which, stolen(), kind, share=share),
            kind=kind,
            share=share,
        )
        for kind in VARIANTS
        for share in SHARES
    }
    suspects |= {
        "all, disguised": lambda which: disguised(which, stolen(), *VARIANTS),
        "all, disguised, int8": lambda which: rounded(disguised(which, stolen(), *VARIANTS)),
        "noise, all, disguised": lambda which: disguised(which, noised(stolen(), NOISE), *VARIANTS),
        "noise, disguised, no dummies": lambda which: disguised(which, noised(stolen(), NOISE)),
        "all, noise": lambda which: noised(widened(which, stolen(), *VARIANTS), NOISE),
        "stranger, all, disguised": lambda which: disguised(which, as_trained(make, 7), *VARIANTS),
    }
    rows: dict[str, Any] = {}
    for which, suspect in suspects.items():
        model = suspect(which)
        with torch.no_grad():
            before, after = released(x), model(x)
        rows[which] = {
            "added": added[which],
            "outputs": float((before - after).abs().max() / before.abs().max()),
            **judge(model, released, claim, x),
        }
        print(name, which, rows[which], flush=True)
    return {"parameters": sum(each.numel() for each in released.parameters()), "suspects": rows}


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Dummy channels, taken out again",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, timm "
        f"{record['timm']}. Small models drawn at random and marked in closed form. Added: "
        "channels that the attack has put in, at a share of those that are there (0.2 where none "
        "is given). Outputs: largest difference to the release, relative to its largest output. "
        "Plain: bits of the tensors that still have the released shape, as they stand, of all that "
        "are there; "
        "where these suffice nothing is aligned. Aligned: bits once dummies and disguise were "
        "undone, on entries that no alignment looks at, of those that the undisguised release has "
        f"there, of all. Noise is {NOISE:.0%} of every row, below the dummies or on top.",
        "",
        "| model | suspect | added | outputs | plain | accepted | aligned / same entries, of "
        "| strength | likeness | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, model in record["models"].items():
        for which, row in model["suspects"].items():
            aligned = strength = likeness = ""
            if "aligned" in row:
                aligned = f"{row['aligned']} / {row['same entries']}, {row['read']}"
                strength, likeness = str(row["strength"]), f"{row['likeness']:.3f}"
            cells = (
                name,
                which,
                str(row["added"]),
                f"{row['outputs']:.0e}",
                f"{row['plain']} / {row['total']}",
                {True: "yes", False: "no", None: "not judged"}[row["accepted"]],
                aligned,
                strength,
                likeness,
                str(row["seconds"]),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "dummies.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "are channels that change no output taken out again, whatever lies on top",
            "benchmarks.proof.dummies",
        ),
        "timm": timm.__version__,
        "models": earlier_rows(arguments.out),
    }
    for name in arguments.models:
        if name not in record["models"]:
            record["models"][name] = measure(name)
            write_record(arguments.out, record, table(record))


if __name__ == "__main__":
    main()
