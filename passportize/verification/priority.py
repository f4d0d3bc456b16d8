"""Dates that can show who was first: whose word each is, and which of two is earlier."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.opening import OpenedCommitment
from passportize.release.timestamp import Timestamp

__all__ = ["PriorityDate", "date_of_commitment"]


@dataclass(frozen=True)
class PriorityDate:
    """The date of a claim.

    Attributes:
        day: In UTC.
        timestamp: The checked timestamp that it comes from; None where a day alone is known.
    """

    day: date
    timestamp: Timestamp | None = None

    def is_before(self, other: PriorityDate) -> bool:
        """Whether it is earlier: to the second where both are timestamps, else by the day."""
        if self.timestamp is not None and other.timestamp is not None:
            return self.timestamp.is_before(other.timestamp)
        return self.day < other.day


def date_of_commitment(
    opened: OpenedCommitment, passport: Passport, claim: Claim
) -> tuple[PriorityDate | None, str]:
    """The date that a release commitment gives to a claim, and whose word it is.

    A date without a checked timestamp is the owner's word alone. Whoever can be believed on their
    word needs no arbitration, so it does not count.

    Returns:
        The date, None if there is none that counts; and a sentence about it.
    """
    commitment = opened.commitment
    named = commitment.passport, commitment.public_key, commitment.claim
    if named != (passport.commitment(), passport.public_key().hex(), claim.digest()):
        return None, "their commitment is not to the passport and claim shown here; it has no date"
    if opened.timestamp is None:
        missing = "its timestamp was not checked" if commitment.timestamp else "it has no timestamp"
        return None, (
            f"the date of their commitment, {commitment.date}, is their own word alone ({missing}) "
            "and does not count"
        )
    stamp = opened.timestamp
    return PriorityDate(stamp.time.date(), stamp), f"their commitment is timestamped: {stamp}"
