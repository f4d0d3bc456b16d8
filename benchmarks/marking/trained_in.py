"""What outlives a thief with inputs where the mark was trained in, not put in afterwards.

Question: the networks of `benchmarks.marking.trained`, trained with `PassportConfig.signature()` on
the same data with the same recipe: how many points does that cost, and what is left after the same
thieves, those with noise where inputs hardly are above all?

    apt-get install dataset-fashion-mnist
    python -m benchmarks.marking.trained_in --folder NETWORKS

trains each network with and without the mark (those without are shared with
`benchmarks.marking.trained`) and adds rows as they come; one that is there is not measured again.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.networks import NETWORKS, Sets, load_or_train, smoothed, trained
from benchmarks.marking.trained import KINDS, begin, stolen
from passportize.demo.recipe import accuracy
from passportize.release.claim import claim_of

__all__ = ["OUT", "trained_in"]

OUT = RESULTS / "marking_trained_in.csv"
CASE = ("network", "seed", "thief")


def main() -> None:
    arguments = begin(__doc__, seeds=1, out=OUT)
    done = {tuple(row[name] for name in CASE) for row in read_rows(arguments.out)}
    for name in arguments.networks:
        for seed in range(arguments.seeds):
            wanted = [kind for kind in KINDS if (name, str(seed), kind) not in done]
            if not wanted:
                continue
            network = NETWORKS[name]
            sets = network.sets(arguments.root)
            before = accuracy(trained(name, seed, sets, arguments.folder)[0], *sets.test)
            model, passport = trained_in(
                name, seed, sets, arguments.folder, pp.PassportConfig.signature(), "_signature"
            )
            claim = claim_of(model)
            model = pp.unpassportize(model)
            for kind in wanted:
                left = stolen(model, kind, network, sets, passport, claim, before)
                row = {**dict(zip(CASE, (name, str(seed), kind), strict=True)), **left}
                append_row(arguments.out, row)
                logging.info("%s", row)


def trained_in(
    name: str, seed: int, sets: Sets, folder: Path, config: pp.PassportConfig, how: str
) -> tuple[nn.Module, pp.Passport]:
    """A network that was trained with a signature, from the same start on the same batches.

    Args:
        name: Of the network.
        seed: Of weights, order and passport.
        sets: Its data.
        folder: Where its weights are kept.
        config: Of the signature.
        how: What tells its file from those of other trainings.

    Returns:
        It, passportized, and the passport.
    """
    passport = pp.Passport.generate("Benchmark", date="2026-11-28", secret=seed.to_bytes(32, "big"))
    torch.manual_seed(seed)
    model = NETWORKS[name].make()
    model = pp.passportize(model, passport, config=config, example_inputs=sets.test[0][:2])
    pp.embed_signature(model)
    load_or_train(model, name, seed, sets, folder, how, _loss)
    return model, passport


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return pp.joint_loss(model, inputs, labels, smoothed).total


if __name__ == "__main__":
    main()
