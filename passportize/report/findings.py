"""What was found, and what was not, in sentences that everybody reads the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from passportize.verification.verdict import Verdict

__all__ = ["Finding", "findings_of", "limits_of", "odds_in_words", "sentence_of"]

_WORDS = "zero one two three four five six seven eight nine ten".split()  # noqa: SIM905


@dataclass(frozen=True)
class Finding:
    """One of the two things that are looked at, each by itself.

    Attributes:
        name: What was looked at.
        role: What it counts for.
        status: What was found, in a few words.
        outcome: ``"accepted"``, ``"refused"`` or ``"open"``, for its colour.
        text: The numbers in sentences.
    """

    name: str
    role: str
    status: str
    outcome: str
    text: str


def odds_in_words(strength: float) -> str:
    """Odds of ``2**-strength`` as people say them.

    >>> odds_in_words(4800), odds_in_words(10), odds_in_words(0.2)
    ('one in ten to the 1,445', 'one in 1,000', 'about even, or better')
    """
    if strength < 1:
        return "about even, or better"
    digits = strength * math.log10(2)
    if digits >= 6:
        return f"one in ten to the {round(digits):,}"
    chances = 2**strength
    places = max(0, math.floor(math.log10(chances)) - 1)
    rounded = round(chances / 10**places) * 10**places
    return f"one in {_WORDS[rounded] if rounded < len(_WORDS) else f'{rounded:,}'}"


def sentence_of(verdict: Verdict, owner: str = "") -> str:
    """The finding in one plain sentence, with the odds in words."""
    whose = f"the signature of {owner}'s passport" if owner else "the signature of this passport"
    odds = f"odds of about {odds_in_words(verdict.strength)}"
    bits = f"{verdict.matched:,} of {verdict.total:,} bits"
    links = verdict.links
    model = "this model"
    if verdict.fitted:
        model = "this model, in what its layers do on the owner's inputs,"
    if verdict.accepted and links is not None and links.accepted:
        return (
            f"Once its disguise was undone, {model} carries {whose}: it comes from the released "
            f"weights, which carry {links.released_matched:,} of {links.released_total:,} bits."
        )
    if verdict.accepted:
        return (
            f"{model[0].upper()}{model[1:]} carries {whose}: {bits} match, which a key that knows "
            f"nothing of these weights would reach with {odds}."
        )
    if verdict.accepted is None:
        return (
            f"It could not be judged whether this model carries {whose}: {_ended(verdict.reason)}"
        )
    if odds_in_words(verdict.strength).startswith("about"):
        odds = "odds of about one in two, or better"
    return (
        f"No signature of this passport was found in this model: {bits} match, which any key would "
        f"reach with {odds}; odds of {odds_in_words(verdict.accept_strength)} are asked for."
    )


def limits_of(verdict: Verdict) -> tuple[str, ...]:
    """What the finding does not show, one sentence each, the weightiest first."""
    law = (
        "Whose property it is in law. The numbers tie a passport to weights; contracts, licences "
        "and authorship are not in them."
    )
    if verdict.accepted:
        return (
            "Who was first. A mark can be put into a copy later; only digests that were published "
            "or timestamped before the model went out show that.",
            law,
            "How the model came to be where it was found: taken, licensed, or given.",
        )
    if verdict.accepted is False:
        hidden = (
            "A disguise that the released weights do not undo would hide it."
            if verdict.links is not None
            else "A disguise hides it from this reading; the released weights (--released) undo "
            "many."
        )
        return (
            "That the model is no copy. Distillation and long enough training remove every mark. "
            + hidden,
            "Whose model it is instead.",
            law,
        )
    return (
        "Anything about the model, for or against. What could not be judged is no refusal.",
        law,
    )


def findings_of(verdict: Verdict) -> tuple[Finding, Finding]:
    """Signature and private branch, as two findings of which one decides."""
    return _signature(verdict), _private_branch(verdict)


def _signature(verdict: Verdict) -> Finding:
    outcome = {True: "accepted", False: "refused", None: "open"}[verdict.accepted]
    links = verdict.links
    text = (
        f"{verdict.matched:,} of {verdict.total:,} bits match, {verdict.strength:,.0f} bits of "
        f"strength (p = {verdict.p_value}); {verdict.accept_strength:g} are asked for. It is read "
        "from the weights alone, with no data."
    )
    status = {True: "Found", False: "Not found", None: "Could not be read"}[verdict.accepted]
    if not verdict.total:
        text = _sentence(verdict.reason)
    if verdict.accepted and links is not None and links.accepted:
        status = "Found behind a disguise"
        text += (
            " So it does not read plainly. Once the disguise was undone, "
            f"{links.aligned_matched:,} of {links.aligned_total:,} bits match in places that the "
            "undoing did not look at."
        )
    return Finding("Signature", "decides the verdict", status, outcome, text)


def _private_branch(verdict: Verdict) -> Finding:
    role = "a second test, decides nothing"
    public, private = verdict.public_accuracy, verdict.private_accuracy
    if public is None or private is None:
        # Names of arguments mean nothing to those who read reports.
        why = verdict.fidelity_reason.partition(" (loader=")[0]
        return Finding("Private branch", role, "Not tested", "open", _sentence(why))
    numbers = (
        f"Put back with the owner's key it is right for {private:.1f} % of {verdict.samples:,} "
        f"samples, the model as it is for {public:.1f} %."
    )
    if not verdict.samples:
        numbers = numbers.replace(" of 0 samples", "")
    if verdict.fidelity is None:
        return Finding(
            "Private branch",
            role,
            "Could not be judged",
            "open",
            f"{numbers} {_sentence(verdict.fidelity_reason)}",
        )
    if verdict.fidelity:
        status, outcome = "Works in this model", "accepted"
        meaning = {
            True: "That agrees with the signature.",
            False: "Without the signature that proves nothing.",
            None: "It cannot stand in for the signature, which could not be read.",
        }[verdict.accepted]
    else:
        status, outcome = "Does not work in this model", "open"
        meaning = (
            f"More than {verdict.fidelity_gap:g} points less: the model was changed, or these are "
            "not the data that it was made for."
        )
        if verdict.accepted:
            meaning += " The signature does not depend on that, and stands as it was found."
    return Finding("Private branch", role, status, outcome, f"{numbers} {meaning}")


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _sentence(text: str) -> str:
    return _ended(text[:1].upper() + text[1:])
