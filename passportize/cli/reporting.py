"""What a report says beside the verdict: which files, which command, whose word a date is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.opening import open_commitment
from passportize.report.examination import Examination, ExaminedFile
from passportize.verification.verdict import Verdict

__all__ = [
    "check_report",
    "compared_files",
    "prepared_note",
    "published_words",
    "write_verdict",
]


def check_report(path: Path) -> None:
    """Refuse a path that cannot be written, before minutes of work and not after them.

    Raises:
        InvalidArgument: It is a folder, or lies in none.
    """
    if path.is_dir():
        raise InvalidArgument(f"--report {path}: this is a folder; give the name of a file in it")
    if not path.absolute().parent.is_dir():
        raise InvalidArgument(f"--report {path}: there is no such folder; make it first")


def compared_files(*given: tuple[str, Path | None]) -> tuple[tuple[str, ExaminedFile], ...]:
    """Further files that were read, by what they are."""
    return tuple(
        (what, file)
        for what, path in given
        if path is not None
        for file in ExaminedFile.all_of(path)
    )


def prepared_note(prepared: str, claim: Claim | None) -> str:
    """How pictures were prepared and whose word that is."""
    note = f"pictures were prepared so: {prepared}"
    if claim is not None and claim.preprocessing is not None:
        note += "; what a claim records is the claimant's choice, and enters no p-value"
    return note


def published_words(path: Path, passport: Passport, claim: Claim | None, roots: Path | None) -> str:
    """What a release commitment shows, in sentences.

    Raises:
        CommitmentRefused, CommitmentFileError: It is not to this passport and claim, or does not
            hold.
    """
    opened = open_commitment(path, passport=passport, claim=claim, roots=roots)
    if opened.timestamp is not None:
        return f"The release commitment is timestamped: {opened.timestamp}."
    why = (
        "its timestamp was not checked against an authority"
        if opened.commitment.timestamp
        else "it bears no timestamp"
    )
    return (
        f"The release commitment bears the date {opened.commitment.date}, on the owner's word "
        f"alone: {why}."
    )


def write_verdict(
    path: Path,
    verdict: Verdict,
    weights: Mapping[str, Tensor],
    passport: Passport,
    claim: Claim | None,
    examination: Examination,
) -> None:
    """Write the report on one suspect."""
    from passportize.report.page import write_report
    from passportize.signature.evidence import read_evidence
    from passportize.signature.model_key import ModelKey

    reading = None
    # Of layers that were fitted anew the file shows no responses.
    if claim is not None and not verdict.fitted:
        key = ModelKey(passport, claim.layout)
        reading = read_evidence(weights, key, claim.layout).reading
    name = Path(examination.files[0].path).name if len(examination.files) == 1 else "this model"
    title = f"Whose signature is in {name}?"
    write_report(path, verdict, title=title, reading=reading, examination=examination)
