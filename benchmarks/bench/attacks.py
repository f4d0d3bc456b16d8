"""Every attack on every scheme: accuracy left, bits, strength left, verdict.

python -m benchmarks.bench.attacks --budget cpu
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import attacked, means_of
from benchmarks.bench.cases import Bench, Case, owner
from benchmarks.bench.columns import Row, accepted, bits, least, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from benchmarks.pages.markdown import table as markdown
from passportize.attacks.attack import attack_names, find_attack

__all__ = ["TABLE", "variants"]

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "fine-tune": tuple({"form": form} for form in ("FTLL", "FTAL", "RTLL", "RTAL")),
    "prune": tuple({"share": share} for share in (0.3, 0.5, 0.7, 0.9)),
    "quantise": ({"bits": 8}, {"bits": 4}),
    "noise": ({"size": 0.1}, {"size": 0.3}),
    "erb": ({"block": "CERB"}, {"block": "IERB"}),
}
"""What attacks are run with; those that are not here, with their defaults."""

NEED_LEAKED = ("ambiguity-2", "erb")
"""The second only to count signs: the forger does not use it."""


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every registered attack with its options, those of others included."""
    return [(name, given) for name in attack_names() for given in OPTIONS.get(name, ({},))]


def measure(bench: Bench, case: Case) -> Iterable[dict[str, Any]]:
    """All attacks on one model."""
    trained = bench.trained(case)
    means = means_of(bench, case, trained)
    for name, given in variants():
        if trained.release is None and find_attack(name).kind == "forgery":
            continue
        leaked = owner(case.seed) if name in NEED_LEAKED else None
        said = " ".join([name, *(f"{value}" for value in given.values())])
        row = attacked(bench, case, trained, name, replace(means, leaked=leaked), **given)
        yield {"attack": said, **row}


def _below(rows: Sequence[Row]) -> str:
    """What could not be done, and why."""
    found = {
        (row["attack"], row["scheme"], row["cannot"].partition(";")[0])
        for row in rows
        if row.get("cannot") and row["scheme"] != "plain"
    }
    if not found:
        return ""
    body = [[attack, f"`{scheme}`", reason] for attack, scheme, reason in sorted(found)]
    return "Attacks that could not be done:\n\n" + markdown(["attack", "scheme", "why"], body)


TABLE = Table(
    name="attacks",
    question="What does every attack leave of every protection?",
    about=(
        "Accuracy: of the attacked model, in percent of the test part. Bits, strength (in bits, "
        "the weakest seed) and verdict: the owner's claim in the attacked model, with the released "
        "weights at hand. 'forged' columns: the claim that the attacker makes. 'broken': the "
        "owner is refused in a model that lost no more than ten points, or a forged claim is "
        "accepted. Attackers have the whole train part and the owner's claim, ambiguity II the "
        "owner's passport too."
    ),
    keys={
        "set": "set",
        "network": "network",
        "norm": "norm",
        "attack": "attack",
        "scheme": "scheme",
    },
    columns={
        "accuracy": mean("after"),
        "bits": bits(),
        "strength": least("strength"),
        "owner accepted": accepted(),
        "forged accuracy": mean("forged_accuracy"),
        "forged bits": bits("forged_matched", "forged_total"),
        "forgery accepted": accepted("forged_accepted"),
        "broken": accepted("broken"),
    },
    measure=measure,
    sets=IMAGE_SETS,
    plot=Plot("attack", {"after": "accuracy left (%)", "strength": "strength left (bits)"}),
    below=_below,
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
