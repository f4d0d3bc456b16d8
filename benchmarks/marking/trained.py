"""What marking costs networks that were trained here, and what outlives fine-tuning.

Question: how many points of Fashion-MNIST's test accuracy does a trained network lose by a mark,
for some numbers of bits and margins; which share of the training's time does it take; and what is
left of both after fine-tuning and after a projection on the thief's inputs? The owner calibrates
with 512 training images; the thief has 2,000 others of the 60,000 that neither training nor
calibration saw, with labels.

    python -m benchmarks.marking.trained --folder NETWORKS

trains what is missing in the folder (minutes each) and adds rows as they come; one that is there is
not measured again. `--seeds` says how many seeds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.networks import IMAGES, NETWORKS, accuracy, data, train, trained
from passportize.attacks import project_weights
from passportize.release.claim import claim_of

OUT = RESULTS / "marking_trained.csv"
# Bits asked for, margin, whether thieves come.
SETTINGS = (
    (1024, 0.5, True),
    (512, 0.5, False),
    (2048, 0.5, False),
    (1024, 1.0, False),
    (1024, 2.0, False),
)

Thief = Callable[[nn.Module, Tensor, Tensor], object]
THIEVES: dict[str, Thief] = {
    "nothing": lambda model, images, labels: None,
    "projected on 99.99 %": lambda model, images, labels: project_weights(
        model, images.split(250), energy=0.9999
    ),
    "projected on 99.9 %": lambda model, images, labels: project_weights(
        model, images.split(250), energy=0.999
    ),
    "fine-tuned, rate 1e-4": lambda model, images, labels: train(model, images, labels, 3, 1e-4, 9),
    "fine-tuned, rate 1e-3": lambda model, images, labels: train(model, images, labels, 3, 1e-3, 9),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of trained networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    images, labels, test, test_labels = data()
    calibration = images[: IMAGES : IMAGES // 512]
    thief, thief_labels = images[IMAGES : IMAGES + 2000], labels[IMAGES : IMAGES + 2000]
    done = {
        tuple(row[name] for name in ("network", "seed", "asked", "margin", "thief"))
        for row in read_rows(arguments.out)
    }
    for seed, name in itertools.product(range(arguments.seeds), NETWORKS):
        plain, training = trained(name, seed, arguments.folder)
        before = accuracy(plain, test, test_labels)
        for bits, margin, thieves in SETTINGS:
            wanted = {
                kind: act
                for kind, act in THIEVES.items()
                if (thieves or kind == "nothing")
                and (name, str(seed), str(bits), str(margin), kind) not in done
            }
            if not wanted:
                continue
            passport = pp.Passport.generate("Benchmark", secret=seed.to_bytes(32, "big"))
            config = pp.PassportConfig.trained(bits=bits, margin=margin)
            model = pp.passportize(
                copy.deepcopy(plain), passport, config=config, example_inputs=test[:2]
            ).eval()
            start = time.process_time()
            pp.embed_signature(model, calibration=calibration.split(128))
            seconds = time.process_time() - start
            claim = claim_of(model)
            pp.unpassportize(model)
            for kind, act in wanted.items():
                suspect = copy.deepcopy(model)
                act(suspect, thief, thief_labels)
                verdict = pp.verify(suspect, passport, claim)
                after = accuracy(suspect, test, test_labels)
                row = {
                    "network": name,
                    "seed": seed,
                    "asked": bits,
                    "margin": margin,
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
                row["margin"] = str(margin)
                append_row(arguments.out, row)
                logging.info("%s", row)


if __name__ == "__main__":
    main()
