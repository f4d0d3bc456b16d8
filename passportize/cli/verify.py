"""verify: passport and claim against the weights of a suspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from passportize.cli.inputs import (
    Arguments,
    PassphraseFile,
    example_of,
    load_data,
    load_model,
    open_passport,
)
from passportize.cli.terminal import (
    ACCEPTED,
    REFUSED,
    UNDECIDED,
    AsJson,
    command,
    emit,
    leave,
    progress,
    working,
)
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim
from passportize.verification.verdict import Verdict

__all__ = ["verify"]


@command
def verify(
    suspect: Annotated[Path, typer.Argument(help="Weights of the suspect.")],
    passport: Annotated[Path, typer.Option(help="The owner's passport.")],
    claim: Annotated[
        Path | None, typer.Option(help="The owner's claim.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the suspect, a timm name or module:function; needed for --data, "
            "and without a claim.",
            show_default=False,
        ),
    ] = None,
    arg: Arguments = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled data for the test of accuracy: digits, fashion-mnist[:FOLDER], a folder "
            "of pictures, a safetensors file with images and labels, or module:function.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.")] = 128,
    key: Annotated[
        str | None,
        typer.Option(help="Where in a training checkpoint the weights are.", show_default=False),
    ] = None,
    released: Annotated[
        Path | None,
        typer.Option(
            help="The weights that were released, as the claim names them: if the signature does "
            "not read plainly, permuted and rescaled channels are undone with them. Needs --model.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="A public model that both may come from: it is taken out of both before they are "
            "compared. Goes with --released.",
            show_default=False,
        ),
    ] = None,
    formulation: Annotated[
        str | None,
        typer.Option("--preset", help="Formulation, without a claim.", show_default=False),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Size of one input, without a claim."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to run the test of accuracy.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", show_default=False)
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Test whose signature a model carries: 0 accepted, 1 refused, 2 could not judge."""
    from passportize.suspects.reading import read_suspect
    from passportize.verification.verification import verify as judge

    if data is not None and model is None:
        raise InvalidArgument("--data needs --model, to run the suspect's weights in")
    if claim is None and model is None:
        raise InvalidArgument(
            "without --claim the places of the bits are found in the model: give --model"
        )
    opened = open_passport(passport, passphrase_file)
    given = load_claim(claim) if claim is not None else None
    if released is not None and (claim is None or model is None):
        raise InvalidArgument("--released needs --claim, which names it, and --model")
    if base is not None and released is None:
        raise InvalidArgument("--base goes with --released")
    with working("reading the suspect", as_json):
        weights = read_suspect(suspect, key)
        shell = load_model(model, arg) if model is not None else None
        batches = load_data(data, shell, batch_size) if data is not None else None
    if batches is not None:
        batches = progress(batches, "both branches", as_json)
    verdict = judge(
        weights,
        opened,
        given,
        batches,
        model=shell,
        released=released,
        base=base,
        config=PassportConfig.preset(formulation) if formulation is not None else None,
        example_inputs=example_of(input_size),
        device=device,
    )
    if report is not None:
        _report(report, verdict, weights.tensors, opened, given, suspect)
    record = {**verdict.to_dict(), "suspect": str(suspect), "report": report and str(report)}
    text = str(verdict) + (f"\nreport:    {report}" if report is not None else "")
    emit(record, text, as_json)
    leave({True: ACCEPTED, False: REFUSED, None: UNDECIDED}[verdict.accepted])


def _report(
    path: Path,
    verdict: Verdict,
    weights: dict[str, Any],
    passport: Passport,
    claim: Claim | None,
    suspect: Path,
) -> None:
    from passportize.report.page import write_report
    from passportize.signature.evidence import read_evidence
    from passportize.signature.model_key import ModelKey

    reading = None
    if claim is not None:
        key = ModelKey(passport, claim.layout)
        reading = read_evidence(weights, key, claim.layout).reading
    title = f"Whose signature is in {suspect.name}?"
    write_report(path, verdict, title=title, reading=reading)
