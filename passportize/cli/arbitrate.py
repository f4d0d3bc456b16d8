"""arbitrate: two parties who both claim a model, as files."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.inputs import PassphraseFile, TimestampRoots, open_passport
from passportize.cli.model_input import MODEL_HELP, Arguments, NumClasses, load_model
from passportize.cli.terminal import (
    ACCEPTED,
    REFUSED,
    UNDECIDED,
    AsJson,
    command,
    emit,
    leave,
    working,
)
from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim_file import load_claim
from passportize.release.opening import open_commitment
from passportize.verification.arbitration import Party
from passportize.verification.arbitration import arbitrate as judge

__all__ = ["arbitrate"]

Published = Annotated[
    str | None,
    typer.Option(
        metavar="DIGEST",
        help="Digest of the claim as that party published it, without a commitment.",
        show_default=False,
    ),
]
PublishedOn = Annotated[
    str | None,
    typer.Option(
        metavar="DATE", help="The ISO date on which they did, as you found it.", show_default=False
    ),
]
Commitment = Annotated[
    Path | None,
    typer.Option(help="That party's release commitment, for its date.", show_default=False),
]
OwnInputs = Annotated[
    Path | None,
    typer.Option(
        help="That party's inputs, which their claim names; needs --model.", show_default=False
    ),
]


@command
def arbitrate(
    first_passport: Annotated[Path, typer.Option(help="Passport of the first party.")],
    first_claim: Annotated[Path, typer.Option(help="Their claim.")],
    first_weights: Annotated[Path, typer.Option(help="What they say is their original.")],
    second_passport: Annotated[Path, typer.Option(help="Passport of the second party.")],
    second_claim: Annotated[Path, typer.Option(help="Their claim.")],
    second_weights: Annotated[Path, typer.Option(help="What they say is their original.")],
    first_commitment: Commitment = None,
    second_commitment: Commitment = None,
    first_inputs: OwnInputs = None,
    second_inputs: OwnInputs = None,
    tsa_roots: TimestampRoots = None,
    first_published: Published = None,
    first_published_on: PublishedOn = None,
    second_published: Published = None,
    second_published_on: PublishedOn = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Architecture of both, to undo a disguise: {MODEL_HELP}", show_default=False
        ),
    ] = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The last public model that both may come from; you say which one, not a party.",
            show_default=False,
        ),
    ] = None,
    first_passphrase_file: PassphraseFile = None,
    second_passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Judge between two who claim one model: 0 it is the first's, 1 the second's, 2 not decided."""
    passports = (
        open_passport(first_passport, first_passphrase_file),
        open_passport(second_passport, second_passphrase_file),
    )
    shell = load_model(model, arg, num_classes) if model is not None else None
    if shell is None and (first_inputs is not None or second_inputs is not None):
        raise InvalidArgument("--first-inputs and --second-inputs need --model, to run weights in")
    first = first_claim, first_weights, first_commitment, first_published, first_published_on
    second = second_claim, second_weights, second_commitment, second_published, second_published_on
    brought = (*first, first_inputs), (*second, second_inputs)
    parties = []
    for passport, (claim, weights, commitment, published, day, inputs) in zip(
        passports, brought, strict=True
    ):
        opened = None
        if commitment is not None:
            opened = open_commitment(commitment, passport=passport, claim=claim, roots=tsa_roots)
        parties.append(
            Party(
                passport,
                load_claim(claim),
                weights,
                published=published or "",
                published_on=_day(passport, day),
                model=shell,
                commitment=opened,
                inputs=inputs,
            )
        )
    if tsa_roots is not None and first_commitment is None and second_commitment is None:
        raise InvalidArgument("--tsa-roots goes with --first-commitment or --second-commitment")
    with working("reading both models", as_json):
        result = judge(parties[0], parties[1], base=base)
    emit(result.to_dict(), str(result), as_json)
    leave({0: ACCEPTED, 1: REFUSED, None: UNDECIDED}[result.owner])


def _day(passport: Passport, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"{passport.owner}: {text!r} is no date; give YYYY-MM-DD") from None
