"""Committing to a release, and opening the commitment: what is shown must be what was named."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from typing import Any

from passportize.errors import (
    CheckpointError,
    CommitmentMismatch,
    TimestampRefused,
    WrongPassport,
)
from passportize.passport.passport import Passport
from passportize.release.checkpoint import host_state_dict, load_weights
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim
from passportize.release.release_commitment import ReleaseCommitment, read_commitment
from passportize.release.timestamp import Timestamp, check_timestamp, load_roots
from passportize.release.weights_digest import weights_digest
from passportize.utils.files import sha256_of_file

__all__ = ["OpenedCommitment", "commit_release", "open_commitment"]

ClaimOrPath = Claim | str | os.PathLike[str]
_PARTS = "passport", "claim", "weights"


@dataclass(frozen=True)
class OpenedCommitment:
    """A release commitment of which everything that was shown holds. ``print(opened)`` shows it.

    Attributes:
        commitment: The commitment; its signature is valid.
        shown: Which of ``"passport"``, ``"claim"`` and ``"weights"`` were compared with it.
        timestamp: The time and whose word it is; None without a timestamp, or where no root
            certificates were given to check it against.
    """

    commitment: ReleaseCommitment
    shown: tuple[str, ...] = ()
    timestamp: Timestamp | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        commitment = self.commitment
        return {
            "passport": commitment.passport,
            "claim": commitment.claim,
            "weights": commitment.weights,
            "weights_file": commitment.weights_file or None,
            "public_key": commitment.public_key,
            "date": commitment.date,
            "shown": list(self.shown),
            "timestamp": self.timestamp and self.timestamp.to_dict(),
            "timestamp_unchecked": self.timestamp is None and bool(commitment.timestamp),
        }

    def __str__(self) -> str:
        commitment = self.commitment
        named = {
            "passport": f"{commitment.passport}, whose key signed",
            "claim": commitment.claim,
            "weights": commitment.weights
            + (f", as a file {commitment.weights_file}" if commitment.weights_file else ""),
        }
        lines = [f"signature:  valid, by the key {commitment.public_key}"]
        for part in _PARTS:
            text = f"as shown: {named[part]}" if part in self.shown else "not shown"
            lines.append(f"{part + ':':11} {text}")
        if self.timestamp is not None:
            lines.append(f"timestamp:  {self.timestamp}")
        elif commitment.timestamp:
            lines.append("timestamp:  NOT CHECKED: no root certificates were given")
        else:
            lines.append("timestamp:  none")
        return "\n".join([*lines, f"date:       {commitment.date}, on the owner's word alone"])


def commit_release(
    passport: Passport,
    claim: ClaimOrPath,
    weights: str | os.PathLike[str] | None = None,
    *,
    date: str | None = None,
) -> ReleaseCommitment:
    """Commit to a release, before it: one signed JSON to publish or timestamp.

    The passport signs with a key that comes from its secret. The date in it is the owner's word;
    only a timestamp (:meth:`ReleaseCommitment.with_timestamp`) makes it somebody else's.

    Args:
        passport: The owner's.
        claim: The claim on the model, or its path.
        weights: The file of weights that will be released, so that its SHA-256 is named too.
        date: ISO date, today (UTC) by default.

    Raises:
        WrongPassport: The claim was made with another passport.
        CommitmentMismatch: The weights are not those of the claim.
        ClaimFileError, CheckpointError: A file cannot be read.
        MissingExtra: ``rfc8785`` is not installed.
    """
    given = claim if isinstance(claim, Claim) else load_claim(claim)
    if not passport.check_commitment(given.commitment):
        raise WrongPassport(
            f"the claim was made with the passport of commitment {given.commitment}, not with "
            f"that of {passport.owner}; give the passport that the model was trained with"
        )
    tensors, file = _digests(weights) if weights is not None else (given.weights, "")
    if not hmac.compare_digest(tensors, given.weights):
        raise CommitmentMismatch(
            f"the weights in {weights} are not those that the claim was made for; give the file "
            "that is released, or make the claim again from the model that is"
        )
    return ReleaseCommitment.signed(passport, given.digest(), given.weights, file, date)


def open_commitment(
    commitment: ReleaseCommitment | str | os.PathLike[str],
    *,
    passport: Passport | None = None,
    claim: ClaimOrPath | None = None,
    weights: str | os.PathLike[str] | None = None,
    roots: str | os.PathLike[str] | None = None,
) -> OpenedCommitment:
    """Check a release commitment against everything that is shown.

    Args:
        commitment: The commitment, or its path.
        passport: The owner's, to show that it is named and that its key signed.
        claim: The claim, or its path.
        weights: The released file.
        roots: PEM file of the root certificates that you trust to give the time.

    Raises:
        CommitmentFileError: The file is missing, not canonical, of another kind or newer.
        BadSignature: It is not signed by the key that it names.
        CommitmentMismatch: Something shown is not what was committed to; all such are named.
        TimestampRefused: Roots are given, and there is no timestamp or none that holds.
        ClaimFileError, CheckpointError, InvalidArgument: Another file cannot be read.
        MissingExtra: ``rfc8785`` or ``rfc3161-client`` is not installed.
    """
    if not isinstance(commitment, ReleaseCommitment):
        commitment = read_commitment(commitment)
    given = load_claim(claim) if claim is not None and not isinstance(claim, Claim) else claim
    wrong = _mismatches(commitment, passport, given, weights)
    if wrong:
        raise CommitmentMismatch(
            f"not what was committed to: {'; '.join(wrong)}; show the files of this release"
        )
    timestamp = None
    if roots is not None:
        trusted = load_roots(roots)
        if not commitment.timestamp:
            raise TimestampRefused(
                "the release commitment bears no timestamp, so there is none to check; its date, "
                f"{commitment.date}, is the owner's word alone"
            )
        timestamp = check_timestamp(commitment.timestamp, commitment.stamped_bytes(), trusted)
    shown = zip(_PARTS, (passport, given, weights), strict=True)
    return OpenedCommitment(
        commitment, tuple(part for part, item in shown if item is not None), timestamp
    )


def _mismatches(
    commitment: ReleaseCommitment,
    passport: Passport | None,
    claim: Claim | None,
    weights: str | os.PathLike[str] | None,
) -> list[str]:
    wrong = []
    if passport is not None:
        if not passport.check_commitment(commitment.passport):
            wrong.append(f"the passport of {passport.owner}")
        elif passport.public_key().hex() != commitment.public_key:
            wrong.append(f"the passport of {passport.owner} is named, but another key signed")
    if claim is not None:
        if claim.digest() != commitment.claim:
            wrong.append("the claim")
        elif (claim.commitment, claim.weights) != (commitment.passport, commitment.weights):
            wrong.append("the claim is named, but with another passport or other weights")
    if weights is not None:
        tensors, file = _digests(weights)
        if tensors != commitment.weights:
            wrong.append(f"the weights in {weights}")
        elif commitment.weights_file not in ("", file):
            wrong.append(f"the file {weights}, though its tensors are: it was written anew")
    return wrong


def _digests(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Digest of the released tensors in a file, and SHA-256 of the file."""
    file = sha256_of_file(path, error=CheckpointError)
    return weights_digest(host_state_dict(load_weights(path))), file
