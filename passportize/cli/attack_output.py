"""What the command attack prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passportize.cli.terminal import emit

if TYPE_CHECKING:
    from passportize.attacks.running import Outcome, Rating

__all__ = ["emit_list", "emit_result"]


def emit_list(as_json: bool) -> None:
    """Print the table of attacks."""
    from passportize.attacks import attack_names, find_attack

    entries = [find_attack(name) for name in attack_names()]
    record = {
        "attacks": [
            {
                "name": entry.name,
                "kind": entry.kind,
                "summary": entry.summary,
                "needs": list(entry.needs),
                "options": dict(entry.options),
                "source": entry.source,
                "expected": entry.expected,
            }
            for entry in entries
        ]
    }
    lines = []
    for kind in ("removal", "forgery"):
        lines.append(f"{kind}:")
        for entry in entries:
            if entry.kind == kind:
                options = ", ".join(f"{key}={value}" for key, value in entry.options.items())
                lines.append(f"  {entry.name:18} {entry.summary}")
                lines.append(f"  {'':18} expected: {entry.expected}")
                if options:
                    lines.append(f"  {'':18} options: {options}")
    emit(record, "\n".join(lines), as_json)


def emit_result(
    outcome: Outcome, rating: Rating | None, checkpoint: Path, out: Path | None, as_json: bool
) -> None:
    """Print what an attack did, and what is left of the owner's claim where that was asked.

    Args:
        outcome: Of the attack.
        rating: What the scheme says; None if it was not asked.
        checkpoint: What was attacked.
        out: Where the attacked weights are, if they were written.
        as_json: Whether to print JSON.
    """
    cost = outcome.cost
    record: dict[str, Any] = {
        "attack": outcome.attack,
        "kind": outcome.kind,
        "options": dict(outcome.options),
        "checkpoint": str(checkpoint),
        "out": out and str(out),
        "cost": asdict(cost),
        "figures": dict(outcome.figures),
        "notes": list(outcome.notes),
    }
    lines = [
        f"attack:    {outcome.attack} ({outcome.kind})",
        f"cost:      {cost.steps} steps, {cost.samples} samples, {cost.seconds:.1f} s",
        *(f"{key}: {value:.4g}" for key, value in outcome.figures.items()),
        *(f"note:      {note}" for note in outcome.notes),
    ]
    if out is not None:
        lines.append(f"weights:   {out}")
    if rating is not None:
        record |= {
            "scheme": rating.scheme,
            "before": rating.before,
            "after": rating.after,
            "owner": asdict(rating.owner),
            "forged": None if rating.forged is None else asdict(rating.forged),
            "broken": rating.succeeded,
        }
        lines += [
            f"accuracy:  {rating.before:.2f} % before, {rating.after:.2f} % after",
            f"owner:     {_word(rating.owner.accepted)}: {rating.owner.reason}",
        ]
        if rating.forged is not None:
            lines.append(f"forged:    {_word(rating.forged.accepted)}: {rating.forged.reason}")
        lines.append(f"verdict:   {rating.scheme} {'is broken' if rating.succeeded else 'holds'}")
    emit(record, "\n".join(lines), as_json)


def _word(accepted: bool | None) -> str:
    return {True: "accepted", False: "refused", None: "could not judge"}[accepted]
