"""Models whose branches were merged by their own code, read plainly and below a disguise.

RepVGG, MobileOne, RepViT and FastViT bring the code that makes one convolution of several branches
and their norms; timm calls it for all of them (``reparameterize_model``). The models are drawn and
marked as in ``symmetries``.

    python -m benchmarks.proof.merged     # resumes; writes results/merged.json and .md
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, measure_models
from benchmarks.pages.markdown import table as markdown
from benchmarks.proof.symmetries import NOISE, build, drawn, judge, protect
from passportize.attacks.disguise import disguise
from tests.support.widths import noised

MODELS = ("repvgg_a0", "mobileone_s0", "repvit_m1", "fastvit_t8")


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """All suspects of one architecture."""
    released, claim = protect(name, None)
    merged = reparameterize_model(released)
    x = torch.randn(2, *merged.default_cfg["input_size"], generator=drawn())
    before, after = released(x), merged(x)

    def disguised(model: nn.Module) -> nn.Module:
        disguise(model, drawn(3))
        return model

    suspects = {
        "merged": merged,
        "merged, disguised": disguised(copy.deepcopy(merged)),
        "merged, noise, disguised": disguised(noised(copy.deepcopy(merged), NOISE)),
        "stranger": disguised(reparameterize_model(build(name, 7))),
    }
    rows = {which: judge(made, released, claim) for which, made in suspects.items()}
    if rows["merged"]["accepted"]:  # nothing has to be aligned
        rows["merged"] = {key: rows["merged"][key] for key in ("plain", "total", "accepted")}
    return {
        "outputs": float((before - after).abs().max() / before.abs().max()),
        "suspects": rows,
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [
            name,
            which,
            f"{row['plain']:,} of {row['total']:,}",
            *_aligned(row),
            "accepted" if row["accepted"] else "refused",
        ]
        for name, model in record["models"].items()
        for which, row in model["suspects"].items()
    ]
    head = ["model", "suspect", "plain", "aligned", "released, same entries", "strength"]
    return "\n".join(
        [
            "# Branches merged by the model's own code",
            "",
            f"`{record['command']}`; {record['machine']}, torch {record['torch']}, timm "
            f"{record['timm']}. Every block's branches made one convolution by timm's "
            "`reparameterize_model`, which changes no output; then the full disguise, and noise of "
            "30 % of every row below it. Plain: bits that are read as they stand. Aligned: bits of "
            "all branches, read from the merged rows on entries that the alignment did not look "
            "at, and what the released model, merged likewise, has there.",
            "",
            markdown([*head, "likeness", "verdict"], rows),
            "",
        ]
    )


def _aligned(row: dict[str, Any]) -> list[str]:
    if "aligned" not in row:
        return [""] * 4
    bits = f"{row['aligned']:,} of {row['read']:,}"
    return [bits, f"{row['same entries']:,}", f"{row['strength']:.0f}", f"{row['likeness']:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS])
    parser.add_argument("--out", type=Path, default=RESULTS / "merged.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "does a model whose branches were merged still say it", "benchmarks.proof.merged"
        ),
        "timm": timm.__version__,
    }
    measure_models(arguments.out, record, arguments.models, measure, table)


if __name__ == "__main__":
    main()
