"""Every attack on every scheme: accuracy left, bits, strength left, verdict.

python -m benchmarks.bench.attacks --budget cpu
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.bench.accuracy import IMAGE_SETS
from benchmarks.bench.attacking import attacked, means_of
from benchmarks.bench.cases import Bench, Case, Trained, owner
from benchmarks.bench.columns import Measured, Row, accepted, bits, cases, least, mean
from benchmarks.bench.plots import Plot
from benchmarks.bench.table import Table, run
from benchmarks.pages.markdown import table as markdown
from benchmarks.pages.markdown import wrapped
from passportize.attacks.attack import attack_names, find_attack
from passportize.attacks.running import BREAKING_LOSS

__all__ = ["SHORT", "TABLE", "summary", "variants"]

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "fine-tune": tuple({"form": form} for form in ("FTLL", "FTAL", "RTLL", "RTAL")),
    "prune": tuple({"share": share} for share in (0.3, 0.5, 0.7, 0.9)),
    "quantise": ({"bits": 8}, {"bits": 4}),
    "noise": ({"size": 0.1}, {"size": 0.3}),
    "drown": ({"share": 0.03, "level": 0.3}, {"share": 0.0003, "level": 1e-4}),
    "erb": ({"block": "CERB"}, {"block": "IERB"}),
}
"""What attacks are run with; those that are not here, with their defaults."""

NEED_LEAKED = ("ambiguity-2", "erb")
"""The second only to count signs: the forger does not use it."""


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every registered attack with its options, those of others included."""
    return [(name, given) for name in attack_names() for given in OPTIONS.get(name, ({},))]


def measure(bench: Bench, case: Case) -> Measured:
    """All attacks on one model."""
    trained = bench.trained(case)
    means = means_of(bench, case, trained)
    yield {"attack": "none"}, partial(_untouched, bench, case, trained)
    for name, given in variants():
        if trained.release is None and find_attack(name).kind == "forgery":
            continue
        leaked = owner(case.seed) if name in NEED_LEAKED else None
        said = " ".join([name, *(f"{value}" for value in given.values())])
        has = replace(means, leaked=leaked)
        yield {"attack": said}, partial(attacked, bench, case, trained, name, has, **given)


def _untouched(bench: Bench, case: Case, trained: Trained) -> dict[str, Any]:
    found = bench.finding(trained, case.set)
    return {
        "kind": "removal",
        "after": found.public_accuracy,
        "verification": found.private_accuracy,
        "matched": found.matched,
        "total": found.total,
        "strength": found.strength if found.total else None,
        "accepted": found.accepted,
        "broken": None,
    }


def summary(rows: Sequence[Row]) -> str:
    """One line for each attack, one column for each scheme: for visitors.

    Where an attack was run with several options, each scheme is shown with those that serve it
    worst: the owner refused or a forgery accepted in a model that is still worth something, and the
    least bits otherwise.

    Args:
        rows: Of one set, network and norm.
    """
    done = [row for row in rows if not row.get("cannot")]
    schemes = list(dict.fromkeys(row["scheme"] for row in done))
    families: dict[str, dict[str, list[list[Row]]]] = {}
    for (attack, scheme), own in cases(done, ["attack", "scheme"]).items():
        family = families.setdefault(attack.partition(" ")[0], {})
        family.setdefault(scheme, []).append(own)
    body = [
        [
            attack,
            *(
                _cell(max(found[scheme], key=_harm)) if scheme in found else ""
                for scheme in schemes
            ),
        ]
        for attack, found in families.items()
    ]
    return markdown(["attack", *(f"`{name}`" for name in schemes)], body) if body else ""


def _harm(rows: Sequence[Row]) -> tuple[bool, bool, float]:
    """How badly one attack serves a scheme, to be compared."""
    kind = _kind(rows)
    broken = any(row.get("broken") for row in rows)
    strengths = [row[f"{kind}strength"] for row in rows if row.get(f"{kind}strength") is not None]
    strength = statistics.fmean(strengths) if strengths else 0.0
    if kind:
        return broken, True, strength
    worth = all(row.get("lost", 0.0) <= BREAKING_LOSS for row in rows)
    # With plain models, which have no bits, the least accuracy is shown.
    left = statistics.fmean(row["after"] for row in rows)
    return broken, worth, -strength if strengths else -left


def _kind(rows: Sequence[Row]) -> str:
    return "forged_" if rows[0].get("kind") == "forgery" else ""


def _cell(rows: Sequence[Row]) -> str:
    """Accuracy, bits and verdict: of the forged claim where the attack is to make one."""
    kind = _kind(rows)
    said = []
    accuracy = mean("forged_accuracy" if kind else "after", 1)(rows, rows)
    if accuracy:
        said.append(f"{accuracy} %")
    if rows[0].get(f"{kind}total"):
        share = sum(100 * row[f"{kind}matched"] / row[f"{kind}total"] for row in rows) / len(rows)
        said.append(f"{share:.0f} % of bits")
    verdicts = [row[f"{kind}accepted"] for row in rows if row.get(f"{kind}accepted") is not None]
    broken = any(row.get("broken") for row in rows)
    if verdicts:
        some = "" if len(set(verdicts)) == 1 else f" {sum(verdicts)} of {len(verdicts)}"
        verdict = f"{'forgery ' if kind else ''}{'accepted' if any(verdicts) else 'refused'}{some}"
        said.append(f"**{verdict}**" if broken else verdict)
    elif broken:
        said.append("**nothing to read**")
    elif kind:
        said.append("no verdict" if said else "no claim")
    return ", ".join(said)


def _below(rows: Sequence[Row]) -> str:
    """The same for visitors; what could not be done, and why."""
    places = {(row["set"], row["network"], row["norm"]) for row in rows}
    short = f"{wrapped(SHORT)}\n\n{summary(rows)}" if len(places) == 1 else ""
    return "\n\n".join(part for part in (short, _undone(rows)) if part)


SHORT = (
    "For each attack: accuracy of the attacked model, share of the owner's bits and verdict on "
    "their claim; of a forgery the same of the forged branch and claim. Of several options of an "
    "attack the one that serves the scheme worst. Bold where a scheme is broken."
)
"""What :func:`summary` shows."""


def _undone(rows: Sequence[Row]) -> str:
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
        "accepted; it says nothing where the owner is refused without an attack already (row "
        "'none'). Attackers have the whole train part and the owner's claim, ambiguity II the "
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
