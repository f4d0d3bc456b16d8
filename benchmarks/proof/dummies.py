"""Channels that a thief adds, taken out again with the released weights.

The three kinds of "Rethinking White-Box Watermarks on Deep Learning Models under Neural Structural
Obfuscation" (USENIX Security 2023), at four shares of the channels that are there, alone and all
three one after the other; these below permutations and positive scales, as published, and below the
full disguise of ``symmetries``; and a stranger of the same architecture that was widened likewise.
On small models also the same with int8 on top, and with noise of 30 % of every row below (beside
the same without dummies) and on top. Models are drawn at random and marked in closed form as there.
Beside it, what an aligner recovers that knows permutations and scales only
(:mod:`benchmarks.proof.permutation_aligner`).

    python -m benchmarks.proof.dummies     # resumes; writes results/dummies.json and .md
    python -m benchmarks.proof.dummies --models resnet
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import ConvNormAct
from timm.models.densenet import DenseNet
from timm.models.inception_v3 import InceptionA
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import earlier_rows, heading, write_record
from benchmarks.proof.dummies_page import page
from benchmarks.proof.permutation_aligner import read_by_permutation
from benchmarks.proof.symmetries import NOISE, OWNER, as_trained, drawn, judge
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.release.claim import Claim, claim_of
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


SHARES = (0.05, 0.1, 0.2, 0.5)
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
"""Small models, and the size of the images that they are called with."""

FULL_SIZE = {
    "resnet18": 64,
    "vit_small_patch16_224": 224,
    "densenet121": 64,
    "inception_v3": 96,
}
"""Models of timm as they are, called with images no larger than their weights want."""

MODELS |= {
    name: (functools.partial(timm.create_model, name, num_classes=10), size)
    for name, size in FULL_SIZE.items()
}


@dataclass(frozen=True)
class Recipe:
    """What a thief does, in this order.

    Attributes:
        stranger: Whether it is done to a model that owes nothing to the release.
        noise: Whether noise comes first.
        kinds: Dummy channels that are added.
        share: How many of each kind, of the channels that are there by then.
        hidden: What hides them.
        last: What is done at the end.
    """

    kinds: tuple[str, ...] = VARIANTS
    share: float = 0.2
    hidden: Literal["", "permuted, scaled", "disguised"] = ""
    stranger: bool = False
    noise: bool = False
    last: Literal["", "int8", "noise"] = ""


ALL = Recipe()
DISGUISED = Recipe(hidden="disguised")
RECIPES: dict[str, Recipe] = {
    "permuted, scaled, no dummies": Recipe(kinds=(), hidden="permuted, scaled"),
    "disguised, no dummies": replace(DISGUISED, kinds=()),
    **{f"{kind}, {share}": Recipe((kind,), share) for kind in VARIANTS for share in SHARES},
    **{f"all, {share}": replace(ALL, share=share) for share in SHARES},
    "all, permuted, scaled": Recipe(hidden="permuted, scaled"),
    "all, disguised": DISGUISED,
    "stranger, all, disguised": replace(DISGUISED, stranger=True),
}
WITH_DAMAGE: dict[str, Recipe] = {
    "all, disguised, int8": replace(DISGUISED, last="int8"),
    "noise, all, disguised": replace(DISGUISED, noise=True),
    "noise, disguised, no dummies": replace(DISGUISED, noise=True, kinds=()),
    "all, noise": replace(ALL, last="noise"),
}
"""More, for the small models alone."""


def recipes_for(name: str) -> Mapping[str, Recipe]:
    """What is measured of a model."""
    return RECIPES if name in FULL_SIZE else {**RECIPES, **WITH_DAMAGE}


def waiting_rows(models: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is still to be measured of the models of a record."""
    found = {
        name: [which for which in recipes_for(name) if which not in model["suspects"]]
        for name, model in models.items()
    }
    return {name: rows for name, rows in found.items() if rows}


class Release:
    """One architecture, marked and released.

    Args:
        name: Of :data:`MODELS`.
    """

    def __init__(self, name: str) -> None:
        self._make, size = MODELS[name]
        self.example = torch.randn(2, 3, size, size, generator=drawn(1))
        self.model = pp.passportize(
            as_trained(self._make, 0),
            OWNER,
            config=pp.PassportConfig.signature(),
            example_inputs=self.example,
        )
        pp.embed_signature(self.model)
        self.claim: Claim = claim_of(self.model)
        take_out_branches(self.model)
        self.model.eval()

    def suspect(self, recipe: Recipe) -> tuple[nn.Module, int]:
        """What a thief made, and how many channels were added."""
        model = as_trained(self._make, 7) if recipe.stranger else copy.deepcopy(self.model)
        x, generator = self.example, drawn(1)
        if recipe.noise:
            noised(model, NOISE)
        added = sum(
            add_dummy_neurons(model, kind, recipe.share, generator, x) for kind in recipe.kinds
        )
        if recipe.hidden == "disguised":
            disguise(model, drawn(3), example_inputs=x)
        elif recipe.hidden:
            permute_channels(model, drawn(3), example_inputs=x)
            scale_neurons(model, drawn(4), decades=1.0, example_inputs=x)
        if recipe.last == "int8":
            rounded(model)
        elif recipe.last == "noise":
            noised(model, NOISE)
        return model, added

    def measure(self, recipe: Recipe) -> dict[str, Any]:
        """One row."""
        model, added = self.suspect(recipe)
        x, released, claim = self.example, self.model, self.claim
        with torch.no_grad():
            before: Tensor = released(x)
            after: Tensor = model(x)
        row = {
            "added": added,
            "outputs": float((before - after).abs().max() / before.abs().max()),
            **judge(model, released, claim, x),
        }
        start = time.process_time()
        row["baseline"] = read_by_permutation(model, released, claim, x)
        row["baseline seconds"] = round(time.process_time() - start, 1)
        return row


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
        "noise": NOISE,
        "models": earlier_rows(arguments.out),
    }
    for name in arguments.models:
        rows = record["models"].get(name, {"suspects": {}})["suspects"]
        recipes = recipes_for(name)
        waiting = {which: how for which, how in recipes.items() if which not in rows}
        if not waiting:
            continue
        release = Release(name)
        parameters = sum(each.numel() for each in release.model.parameters())
        measured = {**record["models"], name: {"parameters": parameters, "suspects": rows}}
        record["models"] = {each: measured[each] for each in MODELS if each in measured}
        for which, recipe in waiting.items():
            rows[which] = release.measure(recipe)
            print(name, which, rows[which], flush=True)
            # In the same order, whichever were missing.
            ordered = {each: rows[each] for each in recipes if each in rows}
            record["models"][name]["suspects"] = ordered
            record["waiting"] = waiting_rows(record["models"])
            write_record(arguments.out, record, page(record))


if __name__ == "__main__":
    main()
