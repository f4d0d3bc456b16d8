"""verify: passport and claim against the weights of a suspect."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from passportize.cli.data_input import (
    BatchSize,
    Data,
    ImgSize,
    Mean,
    Std,
    given_preprocessing,
    load_data,
    preparation,
)
from passportize.cli.group import command_line
from passportize.cli.inputs import PassphraseFile, TimestampRoots, open_passport
from passportize.cli.model_input import (
    MODEL_HELP,
    Arguments,
    InputSize,
    NumClasses,
    example_of,
    load_model,
)
from passportize.cli.reporting import (
    check_report,
    compared_files,
    prepared_note,
    published_words,
    write_verdict,
)
from passportize.cli.terminal import (
    ACCEPTED,
    REFUSED,
    UNDECIDED,
    AsJson,
    command,
    counting,
    emit,
    leave,
    progress,
    working,
)
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.release.claim_file import load_claim
from passportize.report.examination import Examination, ExaminedFile

__all__ = ["verify"]


@command
def verify(
    context: typer.Context,
    suspect: Annotated[Path, typer.Argument(help="Weights of the suspect.")],
    passport: Annotated[Path, typer.Option(help="The owner's passport.")],
    claim: Annotated[
        Path | None, typer.Option(help="The owner's claim.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the suspect, for --data, --released and --inputs, and without a "
            f"claim: {MODEL_HELP}",
            show_default=False,
        ),
    ] = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    data: Data = None,
    batch_size: BatchSize = 128,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
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
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="The owner's inputs, the file that the claim names: if the signature does not "
            "read plainly, it is read from what the suspect's layers do on these, which takes out "
            "noise that the network does not feel. Needs --model.",
            show_default=False,
        ),
    ] = None,
    commitment: Annotated[
        Path | None,
        typer.Option(
            help="The release commitment, for the report; it must be to this passport and claim.",
            show_default=False,
        ),
    ] = None,
    tsa_roots: TimestampRoots = None,
    formulation: Annotated[
        str | None,
        typer.Option("--preset", help="Formulation, without a claim.", show_default=False),
    ] = None,
    input_size: InputSize = None,
    device: Annotated[
        str | None, typer.Option(help="Where to run the test of accuracy.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", show_default=False)
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Test whose signature a model carries: 0 accepted, 1 refused, 2 could not judge.

    The signature is read from the weights alone. With --data the private branch is put back and
    compared too, on pictures prepared as the claim records it.
    """
    from passportize.suspects.reading import read_suspect
    from passportize.verification.verification import verify as judge

    if data is not None and model is None:
        raise InvalidArgument("--data needs --model, to run the suspect's weights in")
    if claim is None and model is None:
        raise InvalidArgument(
            "without --claim the places of the bits are found in the model: give --model"
        )
    if released is not None and (claim is None or model is None):
        raise InvalidArgument("--released needs --claim, which names it, and --model")
    if inputs is not None and (claim is None or model is None):
        raise InvalidArgument("--inputs needs --claim, which names it, and --model")
    if base is not None and released is None:
        raise InvalidArgument("--base goes with --released")
    if tsa_roots is not None and commitment is None:
        raise InvalidArgument("--tsa-roots goes with --commitment")
    pictures = given_preprocessing(img_size, mean, std)
    if pictures and data is None:
        raise InvalidArgument(
            "--img-size, --mean and --std say how to prepare pictures: give --data"
        )
    if report is not None:
        check_report(report)
    opened = open_passport(passport, passphrase_file)
    given = load_claim(claim) if claim is not None else None
    published = ""
    if commitment is not None:
        published = published_words(commitment, opened, given, tsa_roots)
    with working("reading the suspect", as_json):
        weights = read_suspect(suspect, key)
        shell = load_model(model, arg, num_classes) if model is not None else None
        batches: Iterable[Any] | None = None
        prepared = ""
        if data is not None:
            recorded = given.preprocessing if given is not None else None
            how = None
            if Path(data).is_dir():
                how, source = preparation(shell, recorded, pictures)
                prepared = f"{how}; {source}"
            elif pictures:
                raise InvalidArgument(
                    "--img-size, --mean and --std are for a folder of pictures; these --data come "
                    "prepared"
                )
            batches = load_data(data, shell, batch_size, how)
    if batches is not None:
        batches = progress(batches, "both branches", as_json)
    with counting("undoing disguises", as_json) as step:
        verdict = judge(
            weights,
            opened,
            given,
            batches,
            model=shell,
            released=released,
            base=base,
            inputs=inputs,
            config=PassportConfig.preset(formulation) if formulation is not None else None,
            example_inputs=example_of(input_size),
            device=device,
            progress=step,
        )
    if prepared:
        verdict = replace(verdict, notes=(*verdict.notes, prepared_note(prepared, given)))
    if report is not None:
        with working("writing the report", as_json):
            examination = Examination(
                files=ExaminedFile.all_of(suspect),
                command=shlex.join(["passportize", *command_line(context)]),
                owner=opened.owner,
                commitment=opened.commitment(),
                published=published,
                data=data or "",
                preprocessing=prepared,
                compared=compared_files(
                    ("released weights", released),
                    ("public base", base),
                    ("owner's inputs", inputs),
                ),
            )
            write_verdict(report, verdict, weights.tensors, opened, given, examination)
    record = {
        **verdict.to_dict(),
        "suspect": str(suspect),
        "data": data,
        "preprocessing": prepared or None,
        "report": report and str(report),
    }
    text = str(verdict) + (f"\nreport:    {report}" if report is not None else "")
    emit(record, text, as_json)
    leave({True: ACCEPTED, False: REFUSED, None: UNDECIDED}[verdict.accepted])
