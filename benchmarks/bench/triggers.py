"""Triggers: secret pictures that a suspect is asked about, and decoys that measure chance.

python -m benchmarks.bench.triggers --budget cpu
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import means_of
from benchmarks.bench.cases import Bench, Case, owner
from benchmarks.bench.columns import Measured, accepted, bits, least, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from passportize.attacks.running import run_attack
from passportize.data.parts import Part
from passportize.demo.recipe import accuracy
from passportize.thresholds import ACCEPT_STRENGTH
from passportize.verification.triggers import TriggerSet, check_triggers, image_triggers

__all__ = ["TABLE"]

TRIGGERS, DECOYS = 50, 200


def measure(bench: Bench, case: Case) -> Measured:
    """A model that learned the triggers, what attacks leave of them, and one that did not."""
    parts = bench.parts(case.set)
    channels, height, width = parts.train[0].shape[1:]
    shape = (channels, height, width)
    shown, decoys = (
        _prepared(image_triggers(owner(case.seed), count, shape, parts.classes, name=name))
        for name, count in (("", TRIGGERS), ("decoys", DECOYS))
    )
    trained = bench.trained(case, (shown.inputs, shown.labels))
    means = means_of(bench, case, trained)
    attack = partial(run_attack, model=trained.model, means=means)
    suspects: dict[str, Callable[[], nn.Module]] = {
        "as released": lambda: trained.model,
        "fine-tuned, FTAL": lambda: attack("fine-tune", form="FTAL").model,
        "fine-tuned, RTAL": lambda: attack("fine-tune", form="RTAL").model,
        "pruned by half": lambda: attack("prune", share=0.5).model,
        "trained without triggers": lambda: bench.trained(case).model,
    }
    for name, suspect in suspects.items():
        yield {"suspect": name}, partial(_asked, bench, suspect, parts.test, shown, decoys)


def _asked(
    bench: Bench,
    make: Callable[[], nn.Module],
    test: Part,
    shown: TriggerSet,
    decoys: TriggerSet,
) -> dict[str, Any]:
    suspect = make()
    verdict = check_triggers(partial(_scores, suspect, bench.place), shown, decoys=decoys)
    return {
        "deployment": accuracy(suspect, *test),
        "matched": verdict.matched,
        "total": verdict.total,
        "decoys_matched": verdict.decoys_matched,
        "decoys": verdict.decoys,
        "share": 100 * verdict.matched / verdict.total,
        "chance": 100 * verdict.decoys_matched / verdict.decoys,
        "strength": verdict.strength,
        "accepted": verdict.strength >= ACCEPT_STRENGTH,
    }


def _scores(suspect: nn.Module, place: str, inputs: Tensor) -> Tensor:
    scores: Tensor = suspect.eval()(inputs.to(place))
    return scores


def _prepared(triggers: TriggerSet) -> TriggerSet:
    """Brightness about 0, about as far from it as that of standardised images."""
    return replace(triggers, inputs=(triggers.inputs - 0.5) / 0.29)


TABLE = Table(
    name="triggers",
    question="Are triggers answered, and by whom?",
    about=(
        f"{TRIGGERS} secret pictures, two of them in every batch of training, and {DECOYS} decoys "
        "of the same kind that no model was trained on. Matches in percent; strength of the "
        "weakest seed in bits, 64 are needed."
    ),
    keys={
        "set": "set",
        "network": "network",
        "norm": "norm",
        "scheme": "scheme",
        "suspect": "suspect",
    },
    columns={
        "deployment": mean("deployment"),
        "triggers": bits(),
        "decoys": bits("decoys_matched", "decoys"),
        "strength": least("strength"),
        "accepted": accepted(),
    },
    measure=measure,
    sets=IMAGE_SETS,
    schemes=("plain", "keyed"),
    plot=Plot("suspect", {"share": "triggers answered (%)", "chance": "decoys answered (%)"}),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
