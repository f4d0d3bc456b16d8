"""What marking costs networks that were trained here, and what outlives a thief.

Question: how many points of test accuracy does a trained network lose by a mark, for some numbers
of bits, margins and shares of the output; which part of the training's time does it take; and what
is left of both after fine-tuning, after a projection on the thief's inputs, pruning, rounding and
noise? The owner calibrates with 512 training inputs, without labels. The thief has inputs that
neither training nor calibration saw, with labels: 2,000 images of Fashion-MNIST, a fifth of KiCad's
solids.

    apt-get install dataset-fashion-mnist
    apt-get download kicad-packages3d              # 379 MB, read once
    python -m benchmarks.marking.trained --folder NETWORKS --root kicad-packages3d_6.0.10-1_all.deb

trains what is missing in the folder (minutes each) and adds rows as they come; one that is there is
not measured again. With the first seed thieves come to every setting, with the others to the
default one.
`--seeds` says how many seeds, `--networks` which.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.networks import (
    NETWORKS,
    Network,
    Sets,
    train,
    trained,
)
from benchmarks.marking.thieves import THIEVES
from passportize.config import OUTPUT_SHARE
from passportize.data.parts import Part
from passportize.demo.recipe import accuracy
from passportize.release.claim import claim_of
from passportize.thresholds import FITTED_WAYS, Penalty
from passportize.training.refitting import refit_weights

__all__ = ["DEFAULT", "KINDS", "OUT", "Setting", "begin", "marked", "stolen"]

OUT = RESULTS / "marking_trained.csv"
Setting = tuple[int, float, float]
"""Bits asked for, margin, share of the output."""

DEFAULT: Setting = (1024, 0.5, OUTPUT_SHARE)
SETTINGS: tuple[Setting, ...] = (
    DEFAULT,
    (512, 0.5, OUTPUT_SHARE),
    (2048, 0.5, OUTPUT_SHARE),
    (1024, 1.0, OUTPUT_SHARE),
    (1024, 0.5, 0.001),
    (1024, 0.5, 0.01),
)

FINE_TUNED = {"fine-tuned, rate 1e-4": 1e-4, "fine-tuned, rate 1e-3": 1e-3}
"""Highest rate of the cycle with which a thief trains on, for three epochs."""

KINDS = (
    "nothing",
    "projected on 99.9 %",
    "projected on 99 %",
    "projected on 97 %",
    "projected on 95 %",
    "drowned, 3 %",
    "drowned, 10 %",
    "drowned below, 0.03 %",
    "drowned below, 0.1 %",
    "projected on 97 %, drowned below",
    *FINE_TUNED,
    "60 % pruned",
    "int4",
    "noise of 20 %",
)


def steal(model: nn.Module, kind: str, network: Network, part: Part) -> None:
    """What a thief with inputs and labels does, in place."""
    if kind in FINE_TUNED:
        train(model, network, part, 3, FINE_TUNED[kind], 9)
    else:
        THIEVES[kind](model, part[0].split(250))


def begin(description: str | None, seeds: int, out: Path) -> argparse.Namespace:
    """Read the command line, and set up logging and threads.

    Args:
        description: Of the command.
        seeds: How many by default.
        out: Where rows go by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of trained networks")
    parser.add_argument("--root", help="KiCad's package or its unpacked folder")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--networks", nargs="*", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=out)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    return parser.parse_args()


def main() -> None:
    arguments = begin(__doc__, seeds=3, out=OUT)
    done = {tuple(row[name] for name in CASE) for row in read_rows(arguments.out)}
    for seed, name, setting, kinds in _work(arguments.seeds, arguments.networks):
        case = (name, str(seed), *map(str, setting))
        wanted = [kind for kind in kinds if (*case, kind) not in done]
        if not wanted:
            continue
        network = NETWORKS[name]
        sets = network.sets(arguments.root)
        plain, training = trained(name, seed, sets, arguments.folder)
        before = accuracy(plain, *sets.test)
        model, passport, claim, seconds = marked(plain, seed, setting, sets)
        for kind in wanted:
            row = {
                **dict(zip(CASE, (*case, kind), strict=True)),
                **stolen(model, kind, network, sets, passport, claim, before),
                "seconds": seconds,
                "share_of_training": seconds / training,
            }
            append_row(arguments.out, row)
            done.add((*case, kind))
            logging.info("%s", row)


def stolen(
    model: nn.Module,
    kind: str,
    network: Network,
    sets: Sets,
    passport: pp.Passport,
    claim: pp.Claim,
    before: float,
    own: Sequence[Tensor] = (),
) -> dict[str, Any]:
    """What is read in a copy after a thief, and how it does.

    Args:
        model: The marked network, as released.
        kind: What the thief does.
        network: How it was trained.
        sets: The thief's part, and the test part.
        passport: The owner's.
        claim: The owner's.
        before: Accuracy of the same network without a mark, in percent.
        own: The owner's inputs: the suspect is also read with its layers fitted anew to what they
            compute on these.
    """
    suspect = copy.deepcopy(model)
    steal(suspect, kind, network, sets.thief)
    verdict = pp.verify(suspect, passport, claim)
    after = accuracy(suspect, *sets.test)
    fitted = {}
    if own:
        anew = [_fitted(suspect, own, penalty, passport, claim) for penalty in FITTED_WAYS]
        best = max(anew, key=lambda verdict: verdict.strength)
        fitted = {"fitted_matched": best.matched, "fitted_strength": best.strength}
    return {
        "bits": verdict.total,
        "matched": verdict.matched,
        "strength": verdict.strength,
        "accepted": verdict.accepted,
        "plain": before,
        "accuracy": after,
        "lost": before - after,
        **fitted,
    }


def _fitted(
    suspect: nn.Module,
    own: Sequence[Tensor],
    penalty: Penalty,
    passport: pp.Passport,
    claim: pp.Claim,
) -> pp.Verdict:
    anew = copy.deepcopy(suspect)
    refit_weights(anew, own, penalty=penalty)
    return pp.verify(anew, passport, claim)


CASE = ("network", "seed", "asked", "margin", "share", "thief")


def _work(seeds: int, networks: Sequence[str]) -> Iterator[tuple[int, str, Setting, Sequence[str]]]:
    """Seed, network, setting and thieves, what matters most first."""
    cases = list(itertools.product(range(seeds), networks))
    for seed, name in cases:
        yield seed, name, DEFAULT, ("nothing",)
    for name in networks:
        yield 0, name, DEFAULT, KINDS
    for setting, (seed, name) in itertools.product(SETTINGS, cases):
        yield seed, name, setting, ("nothing",)
    for seed, name in cases:
        yield seed, name, DEFAULT, KINDS
    for setting, name in itertools.product(SETTINGS, networks):
        yield 0, name, setting, KINDS


def marked(
    plain: nn.Module, seed: int, setting: Setting, sets: Sets, inputs: str = ""
) -> tuple[nn.Module, pp.Passport, pp.Claim, float]:
    """A marked copy, and the seconds of processor time that marking took.

    Args:
        plain: A trained network.
        seed: Of the passport.
        setting: Of the mark.
        sets: Its data.
        inputs: Digest of the inputs with which a suspect may be looked at.
    """
    bits, margin, share = setting
    passport = pp.Passport.generate("Benchmark", date="2026-11-28", secret=seed.to_bytes(32, "big"))
    config = pp.PassportConfig.trained(bits=bits, margin=margin, inputs=inputs)
    model = pp.passportize(
        copy.deepcopy(plain), passport, config=config, example_inputs=sets.test[0][:2]
    ).eval()
    start = time.process_time()
    pp.embed_signature(model, calibration=sets.calibration.split(128), output_share=share)
    seconds = time.process_time() - start
    claim = claim_of(model)
    return pp.unpassportize(model), passport, claim, seconds


if __name__ == "__main__":
    main()
