"""What marking costs networks that were trained here, and what outlives a thief.

Question: how many points of test accuracy does a trained network lose by a mark, for some numbers
of bits and margins; which share of the training's time does it take; and what is left of both after
fine-tuning, after a projection on the thief's inputs, pruning, rounding and noise? The owner
calibrates with 512 training inputs, without labels. The thief has inputs that neither training nor
calibration saw, with labels: 2,000 images of Fashion-MNIST, a fifth of KiCad's solids.

    apt-get install dataset-fashion-mnist
    apt-get download kicad-packages3d              # 379 MB, read once
    python -m benchmarks.marking.trained --folder NETWORKS --root kicad-packages3d_6.0.10-1_all.deb

trains what is missing in the folder (minutes each) and adds rows as they come; one that is there is
not measured again. With the first seed thieves come to every setting, with the others to the
default one. `--seeds` says how many seeds, `--networks` which.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import time
from pathlib import Path

import torch
from torch import nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.networks import (
    NETWORKS,
    Network,
    fashion,
    solids,
    train,
    trained,
)
from benchmarks.marking.thieves import THIEVES
from passportize.data.parts import Part
from passportize.demo.recipe import accuracy
from passportize.release.claim import claim_of

__all__ = ["DEFAULT", "KINDS", "OUT"]

OUT = RESULTS / "marking_trained.csv"
DEFAULT = (1024, 0.5)
"""Bits asked for, margin."""
SETTINGS = (DEFAULT, (512, 0.5), (2048, 0.5), (1024, 1.0), (1024, 2.0))

FINE_TUNED = {"fine-tuned, rate 1e-4": 1e-4, "fine-tuned, rate 1e-3": 1e-3}
"""Highest rate of the cycle with which a thief trains on, for three epochs."""

KINDS = (
    "nothing",
    "projected on 99.99 %",
    "projected on 99.9 %",
    "projected on 99 %",
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of trained networks")
    parser.add_argument("--root", help="KiCad's package or its unpacked folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    done = {
        tuple(row[name] for name in ("network", "seed", "asked", "margin", "thief"))
        for row in read_rows(arguments.out)
    }
    for seed, name in itertools.product(range(arguments.seeds), arguments.networks):
        network = NETWORKS[name]
        sets = solids(arguments.root) if name == "pointnet" else fashion()
        plain, training = trained(name, seed, sets, arguments.folder)
        before = accuracy(plain, *sets.test)
        for bits, margin in SETTINGS:
            wanted = [
                kind
                for kind in KINDS
                if (kind == "nothing" or seed == 0 or (bits, margin) == DEFAULT)
                and (name, str(seed), str(bits), str(margin), kind) not in done
            ]
            if not wanted:
                continue
            passport = pp.Passport.generate("Benchmark", secret=seed.to_bytes(32, "big"))
            config = pp.PassportConfig.trained(bits=bits, margin=margin)
            model = pp.passportize(
                copy.deepcopy(plain), passport, config=config, example_inputs=sets.test[0][:2]
            ).eval()
            start = time.process_time()
            pp.embed_signature(model, calibration=sets.calibration.split(128))
            seconds = time.process_time() - start
            claim = claim_of(model)
            pp.unpassportize(model)
            for kind in wanted:
                suspect = copy.deepcopy(model)
                steal(suspect, kind, network, sets.thief)
                verdict = pp.verify(suspect, passport, claim)
                after = accuracy(suspect, *sets.test)
                row = {
                    "network": name,
                    "seed": seed,
                    "asked": bits,
                    "margin": str(margin),
                    "thief": kind,
                    "bits": verdict.total,
                    "matched": verdict.matched,
                    "strength": verdict.strength,
                    "accepted": verdict.accepted,
                    "plain": before,
                    "accuracy": after,
                    "lost": before - after,
                    "seconds": seconds,
                    "share_of_training": seconds / training,
                }
                append_row(arguments.out, row)
                logging.info("%s", row)


if __name__ == "__main__":
    main()
