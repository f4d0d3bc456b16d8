"""Fine-tuning to another set: accuracy there, and what bits are left.

python -m benchmarks.bench.fine_tuning --budget cpu
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.bench.attacking import means_of
from benchmarks.bench.cases import Bench, Case, Trained
from benchmarks.bench.columns import Measured, accepted, bits, least, mean, minus_plain
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from passportize.attacks.attack import Means
from passportize.attacks.running import run_attack
from passportize.data.parts import Parts
from passportize.demo.recipe import accuracy

__all__ = ["TABLE", "TARGETS"]

TARGETS = {
    "fashion-mnist-0-4": "fashion-mnist-5-9",
    "fashion-mnist-5-9": "fashion-mnist-0-4",
    "cifar10": "cifar100",
    "cifar100": "cifar10",
    "caltech101": "caltech256",
    "caltech256": "caltech101",
    "digits-0-4": "digits-5-9",
    "digits-5-9": "digits-0-4",
}
FORMS = ("RTAL", "RTLL")


def measure(bench: Bench, case: Case) -> Measured:
    """Every form, from the set that the model was trained on to its partner."""
    target = TARGETS[case.set]
    parts = bench.parts(target)
    trained = bench.trained(case)
    means = means_of(bench, case, trained, target)
    for form in FORMS:
        yield {"target": target, "form": form}, partial(_tuned, trained, means, parts, form)


def _tuned(trained: Trained, means: Means, parts: Parts, form: str) -> dict[str, Any]:
    outcome = run_attack("fine-tune", trained.model, means, form=form, classes=parts.classes)
    row: dict[str, Any] = {"fidelity": accuracy(outcome.model, *parts.test)}
    if trained.release is not None:
        found = trained.release.verify(outcome.model)
        row |= {
            "matched": found.matched,
            "total": found.total,
            "strength": found.strength,
            "accepted": found.accepted,
        }
    return row


TABLE = Table(
    name="fine_tuning",
    question="What does fine-tuning to another set leave?",
    about=(
        "The released model gets a new head for the classes of the target. RTAL: all layers are "
        "trained; RTLL: the head alone. Fidelity: accuracy on the test part of the target; 'minus "
        "plain' is paired with the plain model of the same seed. Bits and verdict are read from "
        "the fine-tuned model."
    ),
    keys={
        "set": "from",
        "target": "to",
        "network": "network",
        "norm": "norm",
        "form": "form",
        "scheme": "scheme",
    },
    columns={
        "fidelity": mean("fidelity"),
        "minus plain": minus_plain("fidelity", "set", "network", "norm", "form"),
        "bits": bits(),
        "strength": least("strength"),
        "accepted": accepted(),
    },
    measure=measure,
    sets=tuple(name for name in TARGETS if not name.startswith("digits")),
    smoke_sets=("digits-0-4",),
    plot=Plot("set", {"fidelity": "accuracy on the target (%)"}),
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
