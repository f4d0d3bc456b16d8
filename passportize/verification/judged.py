"""What is found in a suspect, as it is or fitted anew: by its signature, and by links."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from passportize.signature.evidence import Evidence, judge_evidence, read_evidence
from passportize.signature.model_key import ModelKey
from passportize.thresholds import FITTED_WAYS
from passportize.utils.progress import Progress
from passportize.verification.expectation import Expectation
from passportize.verification.links import Links, judge_links
from passportize.verification.refitted import refit_suspect, refit_tensors
from passportize.verification.suspect import Suspect

__all__ = ["Judged", "Released", "judge", "judge_fitted"]


@dataclass(frozen=True)
class Released:
    """What a suspect is compared with; see :func:`passportize.verification.links.judge_links`.

    Attributes:
        weights: The released weights.
        example_inputs: What the suspect is called with.
        base: A public ancestor.
        architecture: Gives the released model, live, where it was given so; it is a copy, so it is
            made only where it is needed.
    """

    weights: Mapping[str, Tensor]
    example_inputs: Any
    base: Mapping[str, Tensor] | None
    architecture: Callable[[], nn.Module | None]


@dataclass(frozen=True)
class Judged:
    """What is found in a suspect.

    Attributes:
        evidence: The plain reading.
        accepted: Whether the signature was found, plainly or by links; None if that cannot be
            judged.
        reason: Why.
        links: What the released weights say, where they were asked.
        notes: What the reader of a verdict should know of it.
        fitted: Whether it was found in the suspect's layers fitted anew.
    """

    evidence: Evidence
    accepted: bool | None
    reason: str
    links: Links | None = None
    notes: tuple[str, ...] = ()
    fitted: bool = False


def judge(
    opened: Suspect,
    key: ModelKey,
    claimed: Expectation,
    released: Released | None,
    progress: Progress | None,
) -> Judged:
    """Read plainly and, where that does not do and the released weights are there, by links.

    Args:
        opened: The suspect.
        key: The claimant's key for the layout.
        claimed: What is expected of the suspect.
        released: What it is compared with.
        progress: Called while a disguise is undone.
    """
    evidence = read_evidence(opened.carriers, key, claimed.layout)
    accepted, reason = judge_evidence(evidence, claimed.layout)
    if accepted or released is None:
        return Judged(evidence, accepted, reason)
    links = judge_links(
        released.weights,
        opened,
        key,
        claimed,
        released.example_inputs,
        released.base,
        released.architecture(),
        progress,
    )
    if links.accepted:
        return Judged(evidence, True, links.reason, links)
    accepted = accepted if links.accepted is None else False
    return Judged(evidence, accepted, f"{reason}; {links.reason}", links)


def judge_fitted(
    before: Judged,
    opened: Suspect,
    batches: Sequence[Any],
    key: ModelKey,
    claimed: Expectation,
    released: Released | None,
    progress: Progress | None,
) -> Judged:
    """Judge a suspect once more, its layers fitted anew to what they compute on some inputs.

    In one way after the other (:data:`~passportize.thresholds.FITTED_WAYS`). What it is compared
    with is fitted in the same way.

    Args:
        before: What was found in it as it is, which stands where this is not accepted.
        opened: The suspect.
        batches: The owner's inputs.
        key: As for :func:`judge`.
        claimed: As there.
        released: As there.
        progress: As there, and while layers are fitted.

    Raises:
        InvalidArgument: The suspect cannot be run on them.
    """
    best = before
    for penalty in FITTED_WAYS:
        fitted = refit_suspect(opened, batches, penalty, progress)
        if isinstance(fitted, str):
            return replace(before, notes=(f"inputs= were not used: {fitted}",))
        beside = released
        if released is not None:
            module = released.architecture() or opened.module
            assert module is not None
            base = released.base
            beside = replace(
                released,
                weights=refit_tensors(released.weights, module, batches, penalty),
                base=None if base is None else refit_tensors(base, module, batches, penalty),
            )
        found = judge(fitted, key, claimed, beside, progress)
        if found.accepted:
            note = (
                "read from the suspect's layers fitted anew to what they compute on the owner's "
                f"inputs; as they are, {_counted(before)} match"
            )
            return replace(found, notes=(note,), fitted=True)
        if best is before or found.evidence.strength > best.evidence.strength:
            best = found
    note = (
        "fitted anew to what they compute on the owner's inputs, the layers do not carry the "
        f"signature either ({_counted(best)})"
    )
    return replace(before, notes=(note,))


def _counted(judged: Judged) -> str:
    reading = judged.evidence.reading
    return f"{reading.matched} of {reading.total} bits"
