"""commit and open: the signed, timestamped commitment to a release, and its opening."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.inputs import PassphraseFile, TimestampRoots, open_passport
from passportize.cli.terminal import REFUSED, AsJson, command, emit, leave, working
from passportize.errors import CommitmentFileError, CommitmentRefused, InvalidArgument
from passportize.release.opening import OpenedCommitment, commit_release, open_commitment
from passportize.release.release_commitment import read_commitment
from passportize.release.timestamp import LARGEST_RESPONSE
from passportize.utils.files import read_limited, write_atomically

__all__ = ["commit", "open_release"]


@command
def commit(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The release commitment; with --add-token, the old one."),
    ],
    passport: Annotated[
        Path | None, typer.Option(help="The owner's passport.", show_default=False)
    ] = None,
    claim: Annotated[
        Path | None, typer.Option(help="The claim on the model.", show_default=False)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The file that will be released, to name its SHA-256 too.", show_default=False
        ),
    ] = None,
    timestamp_request: Annotated[
        Path | None,
        typer.Option(
            help="Write a request for a timestamp (RFC 3161) here, to send to an authority. Works "
            "without --passport for a commitment that there is already.",
            show_default=False,
        ),
    ] = None,
    add_token: Annotated[
        Path | None,
        typer.Option(help="The authority's response, to put into it.", show_default=False),
    ] = None,
    tsa_roots: TimestampRoots = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Commit to a release before it: digests of passport, claim and weights, signed."""
    if (passport is None) != (claim is None):
        raise InvalidArgument("a release commitment is to both: give --passport and --claim")
    if add_token is not None and (passport is not None or timestamp_request is not None):
        raise InvalidArgument(
            "--add-token goes with -o alone: commit first, send the request, then add the response"
        )
    if passport is None and weights is not None:
        raise InvalidArgument("--weights needs --passport and --claim")
    if tsa_roots is not None and add_token is None:
        raise InvalidArgument("--tsa-roots goes with --add-token")
    if add_token is not None:
        _add(out, add_token, tsa_roots, as_json)
        return
    if passport is not None and claim is not None:
        if out.exists():
            raise CommitmentFileError(f"{out} exists already; choose another --out")
        with _refusals(as_json), working("opening the passport", as_json):
            opened = open_passport(passport, passphrase_file)
            commitment = commit_release(opened, claim, weights)
        commitment.save(out)
    elif timestamp_request is not None:
        commitment = read_commitment(out)
    else:
        raise InvalidArgument("there is nothing to commit to: give --passport and --claim")
    if timestamp_request is not None:
        write_atomically(timestamp_request, commitment.timestamp_request(), error=InvalidArgument)
    record = {
        "file": str(out),
        **OpenedCommitment(commitment).to_dict(),
        "request": timestamp_request and str(timestamp_request),
    }
    what = f"send {timestamp_request} to" if timestamp_request else "have it timestamped by"
    text = (
        f"{out}: commits to\n"
        f"passport:   {commitment.passport}\n"
        f"claim:      {commitment.claim}\n"
        f"weights:    {commitment.weights}\n"
        f"date:       {commitment.date}, on your word alone\n"
        f"Publish it before the weights. For a date on the word of another, {what} an authority "
        "(RFC 3161), and put the response in with --add-token."
    )
    emit(record, text, as_json)


@command
def open_release(
    commitment: Annotated[Path, typer.Argument(help="The release commitment.")],
    passport: Annotated[
        Path | None, typer.Option(help="The owner's passport.", show_default=False)
    ] = None,
    claim: Annotated[
        Path | None, typer.Option(help="The claim on the model.", show_default=False)
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The released file.", show_default=False)
    ] = None,
    tsa_roots: TimestampRoots = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a release commitment against all that is shown: 0 it holds, 1 refused."""
    with _refusals(as_json), working("opening", as_json):
        opened = open_commitment(
            commitment,
            passport=open_passport(passport, passphrase_file) if passport is not None else None,
            claim=claim,
            weights=weights,
            roots=tsa_roots,
        )
    emit(
        {"accepted": True, **opened.to_dict()},
        f"{opened}\nverdict:    what was shown HOLDS",
        as_json,
    )


def _add(out: Path, response: Path, roots: Path | None, as_json: bool) -> None:
    given = read_limited(response, LARGEST_RESPONSE, error=InvalidArgument)
    with _refusals(as_json):
        completed = read_commitment(out).with_timestamp(given)
        opened = open_commitment(completed, roots=roots)
    completed.save(out, overwrite=True)
    if opened.timestamp is not None:
        text = f"{out}: timestamped {opened.timestamp}"
    else:
        text = (
            f"{out}: the timestamp is for this commitment and is in it now; by whom it is was not "
            "checked. To check that, open it with --tsa-roots"
        )
    emit({"file": str(out), **opened.to_dict()}, text, as_json)


@contextmanager
def _refusals(as_json: bool) -> Iterator[None]:
    """What does not hold ends with exit code 1, unlike what cannot be read."""
    try:
        yield
    except CommitmentRefused as refusal:
        record = {"accepted": False, "error": type(refusal).__name__, "message": str(refusal)}
        emit(record, f"verdict:    REFUSED: {refusal}", as_json)
        leave(REFUSED)
