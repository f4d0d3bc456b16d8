"""One attack on one trained model, as a row."""

from __future__ import annotations

from typing import Any

from benchmarks.bench.cases import Bench, Case, Trained, stranger
from benchmarks.bench.networks import build
from passportize.attacks.attack import Means
from passportize.attacks.running import Outcome, rate, run_attack
from passportize.demo.recipe import accuracy
from passportize.errors import DatasetError, PassportizeError

__all__ = ["attacked", "finding_of", "means_of"]


def means_of(bench: Bench, case: Case, trained: Trained, data: str = "") -> Means:
    """What an attacker has: the train part of a set, a passport of their own, the owner's claim.

    Args:
        bench: Data and budget.
        case: What is attacked.
        trained: The same, trained.
        data: Another set than the owner's.
    """
    part = bench.parts(data or case.set).train
    batches = bench.batched(part, bench.budget.batch)
    width = bench.budget.width
    classes = bench.parts(case.set).classes
    release = trained.release
    return Means(
        data=batches,
        steps=bench.budget.attack_epochs * len(batches),
        learning_rate=0.01,
        seed=case.seed + 1000,
        passport=stranger(case.seed),
        scheme=None if release is None else release.scheme,
        claim=None if release is None else release.claim,
        fresh=lambda: build(case.network, case.norm, width, part[0], classes, case.seed + 1000).to(
            bench.place
        ),
        example_inputs=batches[0][0][:4],
    )


def attacked(
    bench: Bench, case: Case, trained: Trained, attack: str, means: Means, **options: Any
) -> dict[str, Any]:
    """Run an attack and say what is left of accuracy and proof.

    Args:
        bench: Data and budget.
        case: What is attacked.
        trained: The same, trained.
        attack: Name of a registered attack.
        means: What the attacker has.
        **options: Of the attack.

    Returns:
        ``cannot`` with the reason where the attack cannot be done on this model or scheme.
    """
    try:
        outcome = run_attack(attack, trained.model, means, **options)
        return finding_of(bench, case, trained, outcome)
    except DatasetError:
        raise
    except PassportizeError as error:
        return {"cannot": str(error)}


def finding_of(bench: Bench, case: Case, trained: Trained, outcome: Outcome) -> dict[str, Any]:
    """What a scheme says of an attacked model, measured on the owner's test part."""
    cost = {"steps": outcome.cost.steps, "attack_seconds": outcome.cost.seconds}
    if trained.release is None:
        test = bench.parts(case.set).test
        return {"after": accuracy(outcome.model, *test), **cost}
    rating = rate(trained.release, outcome, bench.test(case.set))
    row: dict[str, Any] = {
        **rating.figures,
        "kind": rating.kind,
        "after": rating.after,
        "lost": rating.before - rating.after,
        "verification": rating.owner.private_accuracy,
        "matched": rating.owner.matched,
        "total": rating.owner.total,
        "strength": rating.owner.strength,
        "accepted": rating.owner.accepted,
        "broken": rating.succeeded,
        **cost,
    }
    if rating.forged is not None:
        row |= {
            "forged_accuracy": rating.forged.private_accuracy,
            "forged_matched": rating.forged.matched,
            "forged_total": rating.forged.total,
            "forged_strength": rating.forged.strength,
            "forged_accepted": rating.forged.accepted,
        }
    return row
