"""mark, mark-copy and identify: trained weights marked, copies for licensees, whose copy leaked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.data_input import (
    BatchSize,
    ImgSize,
    Mean,
    Std,
    given_preprocessing,
    some_data,
)
from passportize.cli.inputs import PassphraseFile, open_passport
from passportize.cli.model_input import (
    Arguments,
    InputSize,
    NumClasses,
    PlainModel,
    example_of,
    load_model,
)
from passportize.cli.terminal import (
    ACCEPTED,
    REFUSED,
    AsJson,
    command,
    counting,
    emit,
    leave,
    working,
)
from passportize.cli.weights_input import Averaged, load_checkpoint
from passportize.config import OUTPUT_SHARE, PassportConfig
from passportize.errors import CheckpointError, ClaimFileError, DatasetError

__all__ = ["identify", "mark", "mark_copy"]

OwnPassport = Annotated[Path, typer.Option("--passport", help="The owner's passport.")]
Calibration = Annotated[
    str,
    typer.Option(
        "--data",
        help="Inputs as the model is used on, labels ignored: a folder of pictures with one folder "
        "per class, digits, fashion-mnist[:FOLDER], a safetensors file with images and labels, or "
        "module:function.",
    ),
]
OutputShare = Annotated[
    float,
    typer.Option(
        help="What the mark may make of the outputs of marked rows: more is harder to remove, and "
        "disturbs more."
    ),
]
Images = Annotated[int, typer.Option("--images", min=1, help="How many of them to look at.")]


@command
def mark(
    checkpoint: Annotated[Path, typer.Argument(help="Trained weights.")],
    passport: OwnPassport,
    data: Calibration,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The marked weights: a new safetensors file.")
    ] = Path("marked.safetensors"),
    own_claim: Annotated[Path, typer.Option("--claim", help="The claim: a new file.")] = Path(
        "owner.claim.safetensors"
    ),
    inputs: Annotated[
        Path,
        typer.Option(
            help="The inputs that were looked at, kept: a new file. With it a suspect that was "
            "covered with noise is read, so keep it as long as the claim.",
        ),
    ] = Path("owner.inputs.safetensors"),
    bits: Annotated[int, typer.Option(min=64, help="Rows that carry a bit of the owner's.")] = 1024,
    margin: Annotated[float, typer.Option(help="How far from zero they are put.")] = 0.5,
    output_share: OutputShare = OUTPUT_SHARE,
    licence_bits: Annotated[
        int, typer.Option(min=0, help="Rows kept for the copies of licensees.")
    ] = 4096,
    images: Images = 256,
    ema: Averaged = None,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    input_size: InputSize = None,
    batch_size: BatchSize = 32,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Mark trained weights without training, and write the claim on them.

    A few inputs say which changes the layers hardly notice. Publish the claim's digest, or a
    release commitment, before the weights.
    """
    from passportize.release.checkpoint import save_weights
    from passportize.release.claim import claim_of
    from passportize.release.claim_file import write_claim
    from passportize.release.inputs_file import inputs_digest, save_inputs
    from passportize.surgery.surgery import passportize, unpassportize
    from passportize.training.embedding import embed_signature
    from passportize.verification.verification import verify

    files = (out, CheckpointError), (own_claim, ClaimFileError), (inputs, DatasetError)
    for file, kind in files:
        if file.exists():
            raise kind(f"{file} exists already; choose another name, or move it away")
    opened = open_passport(passport, passphrase_file)
    with working(f"reading {checkpoint}", as_json):
        plain = load_checkpoint(checkpoint, model, num_classes, arg, ema)
        given = given_preprocessing(img_size, mean, std)
        batches, prepared = some_data(data, plain, images, batch_size, given)
        config = PassportConfig.trained(
            margin=margin, bits=bits, licence_bits=licence_bits, inputs=inputs_digest(batches)
        )
        marked = passportize(plain, opened, config=config, example_inputs=example_of(input_size))
    with counting("turning rows", as_json) as step:
        done = embed_signature(
            marked, calibration=batches, output_share=output_share, progress=step
        )
    made = claim_of(marked, prepared)
    verdict = verify(unpassportize(marked), opened, made)
    save_weights(out, marked.state_dict())
    write_claim(made, own_claim)
    save_inputs(batches, inputs)
    record = {
        "file": str(out),
        "claim": str(own_claim),
        "inputs": str(inputs),
        "digest": made.digest(),
        "weights": made.weights,
        "bits": done.bits,
        "by_output": done.by_output,
        "outputs_moved": done.outputs_moved,
        "change": done.change,
        "strength": verdict.strength,
    }
    lines = [
        f"{out}: {done}",
        f"signature:   {verdict.matched} of {verdict.total} bits, {verdict.strength:.0f} bits of "
        "strength",
        f"claim:       {own_claim}",
        f"inputs:      {inputs} (keep them as long as the claim)",
        f"digest:      {made.digest()} (publish this before the weights)",
    ]
    emit(record, "\n".join(lines), as_json)


@command
def mark_copy(
    released: Annotated[Path, typer.Argument(help="The weights that the claim names.")],
    licensee: Annotated[str, typer.Argument(help="Who gets the copy.")],
    passport: OwnPassport,
    own_claim: Annotated[Path, typer.Option("--claim", help="The claim on the release.")],
    data: Calibration,
    out: Annotated[Path, typer.Option("--out", "-o", help="The copy: a new safetensors file.")],
    output_share: OutputShare = OUTPUT_SHARE,
    images: Images = 256,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    batch_size: BatchSize = 32,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the copy of one licensee, told from everybody else's by bits of its own."""
    from passportize.release.checkpoint import save_weights
    from passportize.release.claim_file import load_claim
    from passportize.release.licensed_copy import mark_copy as make_copy

    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another --out, or move it away")
    opened = open_passport(passport, passphrase_file)
    claim = load_claim(own_claim)
    with working(f"reading {released}", as_json):
        plain = load_checkpoint(
            released, model or claim.architecture or None, num_classes, arg, False
        )
        batches, _ = some_data(data, plain, images, batch_size, {}, claim.preprocessing)
    with counting("turning rows", as_json) as step:
        holder = opened.licensee(licensee)
        done = make_copy(
            plain,
            holder,
            claim,
            calibration=batches,
            output_share=output_share,
            progress=step,
        )
    save_weights(out, plain.state_dict())
    record = {
        "file": str(out),
        "licensee": done.licensee,
        "bits": done.bits,
        "change": done.change,
        "weights": done.weights,
    }
    emit(record, f"{out}: {done}", as_json)


@command
def identify(
    suspect: Annotated[Path, typer.Argument(help="Weights of the suspect.")],
    passport: OwnPassport,
    own_claim: Annotated[Path, typer.Option("--claim", help="The claim on the release.")],
    licensees: Annotated[
        Path, typer.Option("--licensees", help="All who got a copy: a text file, one a line.")
    ],
    released: Annotated[
        Path | None,
        typer.Option(
            help="The release that the copies were made from: tells more of mixed copies, and "
            "undoes disguises with --model.",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="The owner's inputs, the file that the claim names: takes out noise that the "
            "network does not feel. Needs --model.",
            show_default=False,
        ),
    ] = None,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whose copy a suspect is, or was mixed from: 0 somebody is named, 1 nobody.

    That tells an owner who leaked. It proves nothing to others, since the owner could have marked a
    copy in anybody's name.
    """
    from passportize.errors import InvalidArgument
    from passportize.verification.identification import identify as ask

    opened = open_passport(passport, passphrase_file)
    try:
        lines = licensees.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"--licensees {licensees}: {error}; give a text file") from None
    with working("reading the suspect", as_json):
        shell = load_model(model, arg, num_classes) if model is not None else None
        found = ask(
            suspect,
            opened,
            [line for line in lines if line.strip()],
            own_claim,
            released=released,
            inputs=inputs,
            model=shell,
        )
    emit({**found.to_dict(), "suspect": str(suspect)}, str(found), as_json)
    leave(ACCEPTED if found.named else REFUSED)
