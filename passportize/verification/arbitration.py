"""Two parties claim one model: whose mark is in whose weights, and who published first.

A signature says that a key and weights belong together, not since when. Of two parties who each
show one, the other's model decides: a copy carries the mark of what it was copied from, disguised
or not, and the original does not carry the copy's. Where both weights carry both marks, only the
dates on which the claims were published are left. Weights that are alike without either mark in the
other's are kin: two fine-tunings of one public model are, and no date makes one of them a copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from torch import nn

from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim
from passportize.release.inputs_file import Inputs
from passportize.release.opening import OpenedCommitment
from passportize.verification.priority import PriorityDate, date_of_commitment
from passportize.verification.suspect import Weights
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__all__ = ["Arbitration", "Party", "arbitrate"]


@dataclass(frozen=True)
class Party:
    """One who claims to be the owner, and what they bring.

    Attributes:
        passport: Their passport.
        claim: Their claim, or its path.
        weights: The weights that they say are their original: a plain model, a state dict or a
            file. They must be those that the claim was made for.
        published: Digest of the claim as it was published, hexadecimal; empty if it was not.
        published_on: The day that a trusted timestamp gives for that digest. Whether the timestamp
            can be trusted is for the judge to say.
        model: A plain model of the architecture of these weights, where they are none themselves.
        commitment: In place of ``published`` and ``published_on``, their release commitment as
            :func:`passportize.open_commitment` gave it: the date comes from its timestamp.
        inputs: Their inputs, where their claim names some, as in :func:`passportize.verify`: their
            mark is looked for with these as well in the weights of the other.
    """

    passport: Passport
    claim: Claim | str | os.PathLike[str]
    weights: Weights = field(repr=False)
    published: str = ""
    published_on: date | None = None
    model: nn.Module | None = field(default=None, repr=False)
    commitment: OpenedCommitment | None = None
    inputs: Inputs | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Arbitration:
    """Result of :func:`arbitrate`. ``print(arbitration)`` shows it.

    Attributes:
        owner: 0 or 1 for the party whose model is the origin of the other's; None if that could
            not be judged.
        reason: The decision in words.
        names: Of the parties, from their passports.
        own: Verdict on each party's mark in their own weights.
        other: Verdict on each party's mark in the weights of the other, as they stand or, in its
            ``links``, aligned.
        dated: The day that counts for each party; None where nothing valid was published. Whose
            word it is stands in the notes.
        notes: What else the reader should know.
    """

    owner: int | None
    reason: str
    names: tuple[str, str]
    own: tuple[Verdict, Verdict]
    other: tuple[Verdict, Verdict]
    dated: tuple[date | None, date | None]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "owner": self.owner,
            "reason": self.reason,
            "names": list(self.names),
            "own": [verdict.to_dict() for verdict in self.own],
            "other": [verdict.to_dict() for verdict in self.other],
            "dated": [day.isoformat() if day else None for day in self.dated],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = []
        for index, name in enumerate(self.names):
            day = self.dated[index]
            published = f"claim published on {day.isoformat()}" if day else "no published claim"
            lines.append(f"{name}: {published}")
            lines.append(f"  mark in their own weights:     {_line(self.own[index])}")
            lines.append(f"  mark in the weights of others: {_line(self.other[index])}")
        lines += [f"note:     {note}" for note in self.notes]
        whose = "NOT DECIDED" if self.owner is None else f"the origin is {self.names[self.owner]}'s"
        return "\n".join([*lines, f"decision: {whose}: {self.reason}"])


def arbitrate(first: Party, second: Party, *, base: Weights | None = None) -> Arbitration:
    """Judge between two parties who both say that a model is theirs.

    1. A party whose mark is not in their own weights, or whose weights are not those that their
       claim was made for, has no claim.
    2. If one party's mark is in the weights of both and the other's only in their own, the first
       is the origin: a copy keeps the mark of what it was made from. Where the weights of the
       claimant can be aligned with those of the other (channels permuted, rescaled or mirrored),
       the mark counts as found if it is there after that.
    3. If both marks are in both weights, the claim that was published earlier decides, provided
       that it is the very claim that is shown here.
    4. If each mark is only in its own weights, but the weights are alike, they are kin, and that
       decides nothing: both may come from one ancestor, which neither has to have made. With
       ``base`` the ancestor is taken out of both; if they are alike beyond it, and both claims
       were published, the earlier one decides.
    5. If they are not alike, nothing shows that the two models are related.

    The thresholds are those of :func:`passportize.verify`.

    Args:
        first: One party.
        second: The other.
        base: The last public model that both may come from; for models that were trained from
            nothing their common initial weights. It is for the judge to say which one that is: an
            older one that a party names proves nothing.

    Raises:
        InvalidArgument: Both bring the same passport, or one a commitment and another date.
        WrongPassport: A claim was made with another passport than the party brings.
        ClaimFileError, CheckpointError, DatasetError: A file cannot be read.
    """
    parties = first, second
    if first.passport.commitment() == second.passport.commitment():
        raise InvalidArgument("arbitrate: both parties bring the same passport")
    for party in parties:
        if party.commitment is not None and (party.published or party.published_on):
            raise InvalidArgument(
                f"arbitrate: {party.passport.owner} brings a commitment and published= or "
                "published_on= beside it; leave those out, for the date comes from the commitment"
            )
    claims = tuple(
        party.claim if isinstance(party.claim, Claim) else load_claim(party.claim)
        for party in parties
    )
    own = tuple(
        verify(party.weights, party.passport, claim)
        for party, claim in zip(parties, claims, strict=True)
    )
    other = tuple(
        verify(
            parties[1 - index].weights,
            parties[index].passport,
            claims[index],
            model=_model(parties, own, index),
            released=parties[index].weights if _can_align(parties, own, index) else None,
            base=base if _can_align(parties, own, index) else None,
            inputs=parties[index].inputs,
        )
        for index in (0, 1)
    )
    names = (first.passport.owner, second.passport.owner)
    dates, words = zip(
        *(_dated(party, claim) for party, claim in zip(parties, claims, strict=True)), strict=True
    )
    dated = tuple(found.day if found is not None else None for found in dates)
    notes = tuple(f"{name}: {word}" for name, word in zip(names, words, strict=True) if word)
    valid = [bool(verdict.accepted and verdict.same_weights) for verdict in own]
    found = [bool(verdict.accepted) for verdict in other]
    kin = any(verdict.links is not None and verdict.links.kin for verdict in other)
    owner, reason = _decide(names, valid, found, kin, base is not None, dates)
    return Arbitration(
        owner,
        reason,
        names,
        (own[0], own[1]),
        (other[0], other[1]),
        (dated[0], dated[1]),
        notes,
    )


def _can_align(parties: tuple[Party, Party], own: tuple[Verdict, ...], index: int) -> bool:
    """Alignment needs the very weights of the claim, and a model to trace."""
    suspect = parties[1 - index]
    traced = isinstance(suspect.weights, nn.Module) or suspect.model is not None
    return traced and own[index].same_weights is True


def _model(parties: tuple[Party, Party], own: tuple[Verdict, ...], index: int) -> nn.Module | None:
    """The architecture of what is judged, or of what was released where that lives already."""
    if isinstance(parties[1 - index].weights, nn.Module):
        return parties[index].model if _can_align(parties, own, index) else None
    return parties[1 - index].model


def _dated(party: Party, claim: Claim) -> tuple[PriorityDate | None, str]:
    """The date that counts for a party, and whose word it is or why there is none."""
    if party.commitment is not None:
        return date_of_commitment(party.commitment, party.passport, claim)
    if not party.published:
        return None, ""
    if party.published.strip().lower() != claim.digest():
        return None, "what they published is not the digest of the claim shown here; it has no date"
    if party.published_on is None:
        return None, ""
    return PriorityDate(party.published_on), (
        f"the day {party.published_on.isoformat()} was given to arbitrate as it is; no timestamp "
        "of it was checked"
    )


def _decide(
    names: tuple[str, str],
    valid: list[bool],
    found: list[bool],
    kin: bool,
    beyond: bool,
    dated: tuple[PriorityDate | None, ...],
) -> tuple[int | None, str]:
    """Whose the origin is, and why; the table of it is in docs/threat_model.md."""
    if not any(valid):
        return None, "neither shows weights of their own that carry their mark"
    for index in (0, 1):
        if not valid[1 - index]:
            shown = f"{names[1 - index]} shows no weights that their claim was made for"
            if found[index]:
                return index, f"{shown}, and what they show comes from these weights"
            if kin:
                return None, f"{shown}; {_KIN}"
            return None, f"{shown}, and what they show has nothing to do with these weights"
    for index in (0, 1):
        if found[index] and not found[1 - index]:
            return index, (
                f"their mark is in the weights of both, and that of {names[1 - index]} only in "
                "their own"
            )
    if all(found):
        return _earlier(names, "both marks are in both weights", dated)
    alone = "each mark is in its own weights alone"
    if not kin:
        related = "related beyond the base" if beyond else "related"
        return None, f"{alone}: nothing shows that they are {related}"
    if not beyond:
        return None, f"{alone}; {_KIN}"
    alike = f"{alone}, and the weights are alike beyond the base"
    if any(date is None for date in dated):
        return None, f"{alike}; which was first only two published claims could say"
    return _earlier(names, alike, dated)


_KIN = (
    "the weights are kin, direction unknown: both may come from one ancestor. If a public one is "
    "known, give it as base="
)


def _earlier(
    names: tuple[str, str], marks: str, dated: tuple[PriorityDate | None, ...]
) -> tuple[int | None, str]:
    """The party whose claim was published first."""
    if dated[0] is None and dated[1] is None:
        return None, f"{marks}, and neither claim was published"
    for index in (0, 1):
        mine, theirs = dated[index], dated[1 - index]
        if mine is not None and (theirs is None or mine.is_before(theirs)):
            later = "was not" if theirs is None else "was later"
            return index, (
                f"{marks}; their claim was published, and that of {names[1 - index]} {later}"
            )
    return None, f"{marks}, and neither claim was published measurably before the other"


def _line(verdict: Verdict) -> str:
    links = verdict.links
    word = {True: "found", False: "not found", None: "could not be judged"}[verdict.accepted]
    line = f"{word}, {verdict.matched} of {verdict.total} bits, p = {verdict.p_value}"
    if links is None or links.similarity is None:
        return line
    if links.accepted:
        return (
            f"found once a disguise was undone, {links.aligned_matched} of "
            f"{links.aligned_total} bits (likeness {links.similarity.likeness:.3f})"
        )
    if links.kin:
        return f"{line}; the weights are kin (likeness {links.similarity.likeness:.3f})"
    return line
