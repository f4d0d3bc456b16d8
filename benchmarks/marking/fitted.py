"""What is read in a copy that was covered with noise, from what its layers do on owner's inputs.

Question: the thieves of `benchmarks.marking.trained` who have inputs cover a mark where a network
does not feel it. How much of the mark is read plainly, and how much with the layers fitted anew to
what they compute on the 512 inputs that the owner marks with (`verify(inputs=)`)? For marks that
were put in after the training at the default share of the outputs and at ten times of it, trained
in, and trained in and put in once more before the release.

    apt-get install dataset-fashion-mnist
    python -m benchmarks.marking.fitted --folder NETWORKS

trains what is missing in the folder and adds rows as they come; one that is there is not measured
again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.networks import NETWORKS, Sets, trained
from benchmarks.marking.trained import DEFAULT, begin, marked, stolen
from benchmarks.marking.trained_in import trained_in
from passportize.config import DEEPER_SHARE
from passportize.demo.recipe import accuracy
from passportize.release.claim import claim_of
from passportize.release.inputs_file import inputs_digest

__all__ = ["KINDS", "OUT", "WAYS"]

OUT = RESULTS / "marking_fitted.csv"
CASE = ("network", "seed", "way", "thief")
SHARES = {"after the training": 1, "after the training, ten times the share": 10}
"""Ways to mark a trained network, and how often the default share of the outputs they take."""

WAYS = (*SHARES, "trained in", "trained in, and once more")
KINDS = (
    "nothing",
    "projected on 97 %",
    "projected on 95 %",
    "drowned, 3 %",
    "drowned, 10 %",
    "drowned below, 0.03 %",
    "projected on 97 %, drowned below",
)


def main() -> None:
    arguments = begin(__doc__, seeds=1, out=OUT)
    done = {tuple(row[name] for name in CASE) for row in read_rows(arguments.out)}
    for seed in range(arguments.seeds):
        for name in arguments.networks:
            for way in WAYS:
                wanted = [kind for kind in KINDS if (name, str(seed), way, kind) not in done]
                if not wanted:
                    continue
                network = NETWORKS[name]
                sets = network.sets(arguments.root)
                plain = trained(name, seed, sets, arguments.folder)[0]
                before = accuracy(plain, *sets.test)
                own = sets.calibration.split(128)
                model, passport, claim = _released(
                    plain, name, seed, way, sets, own, arguments.folder
                )
                for kind in wanted:
                    left = stolen(model, kind, network, sets, passport, claim, before, own)
                    case = dict(zip(CASE, (name, str(seed), way, kind), strict=True))
                    append_row(arguments.out, {**case, **left})
                    logging.info("%s", {**case, **left})


def _released(
    plain: nn.Module,
    name: str,
    seed: int,
    way: str,
    sets: Sets,
    own: Sequence[Tensor],
    folder: Path,
) -> tuple[nn.Module, pp.Passport, pp.Claim]:
    inputs = inputs_digest(own)
    if way in SHARES:
        bits, margin, share = DEFAULT
        return marked(plain, seed, (bits, margin, share * SHARES[way]), sets, inputs)[:3]
    config = pp.PassportConfig.signature(inputs=inputs)
    model, passport = trained_in(name, seed, sets, folder, config, "_inputs")
    model.eval()
    if way == "trained in, and once more":
        pp.embed_signature(
            model, calibration=sets.calibration.split(128), output_share=DEEPER_SHARE
        )
    claim = claim_of(model)
    return pp.unpassportize(model), passport, claim


if __name__ == "__main__":
    main()
