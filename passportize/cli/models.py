"""plan, strip and export: what would be protected, and the plain model of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from torch import nn

from passportize.cli.data_input import ImgSize, Mean, Std, given_preprocessing
from passportize.cli.inputs import PassphraseFile, open_passport
from passportize.cli.model_input import (
    MODEL_HELP,
    Arguments,
    InputSize,
    NumClasses,
    example_of,
    load_model,
)
from passportize.cli.terminal import REFUSED, AsJson, command, emit, leave, working
from passportize.cli.weights_input import Averaged, wants_averaged
from passportize.config import PassportConfig
from passportize.errors import CheckpointError, ClaimMismatch, InvalidArgument
from passportize.release.checkpoint import host_state_dict, load_weights, model_of_checkpoint
from passportize.release.strip import averaged_key

if TYPE_CHECKING:
    from passportize.release.notice import Notice
    from passportize.release.preprocessing import Preprocessing

__all__ = ["export", "plan", "strip"]


@command
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    num_classes: NumClasses = None,
    arg: Arguments = None,
    formulation: Annotated[
        str, typer.Option("--preset", help="keyed, paper or signature.")
    ] = "keyed",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Names of the norms to bind, 'layer4*' say; repeatable."),
    ] = None,
    input_size: InputSize = None,
    include_frozen: Annotated[
        bool, typer.Option("--include-frozen", help="Bind norms that do not train, too.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Show for one norm how its weight was found, or why there is none.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every norm of a model and the weight it would be bound to; 1 if there is none."""
    from passportize.surgery.planning import plan as make_plan

    with working(f"reading {model}", as_json):
        planned = make_plan(
            load_model(model, arg, num_classes),
            config=PassportConfig.preset(formulation),
            where=where or None,
            example_inputs=example_of(input_size),
            include_frozen=include_frozen,
        )
    if explain is not None:
        explained = planned.explain(explain)
        emit(explained.to_dict(), str(explained), as_json)
        return
    emit(planned.to_dict(), str(planned), as_json)
    leave(0 if planned.bits else REFUSED)


@command
def strip(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of a passportized model.")],
    out: Annotated[
        Path, typer.Argument(help="New file; safetensors if the name ends so, else torch's format.")
    ],
    ema: Averaged = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Check that this model loads the result strictly: {MODEL_HELP}",
            show_default=False,
        ),
    ] = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    passport: Annotated[
        Path | None,
        typer.Option(
            "--passport",
            help="With --claim: refuse weights that do not carry the signature.",
            show_default=False,
        ),
    ] = None,
    own_claim: Annotated[
        Path | None,
        typer.Option("--claim", help="Goes with --passport.", show_default=False),
    ] = None,
    passphrase_file: PassphraseFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the plain model's weights of a checkpoint, without any trace of a private branch."""
    from passportize.integrations.timm.release_folder import check_signature
    from passportize.release.strip import averaged_key, strip_checkpoint
    from passportize.verification.verification import verify

    if (passport is None) is not (own_claim is None):
        raise InvalidArgument("--passport and --claim go together")
    opened = open_passport(passport, passphrase_file) if passport is not None else None
    _refuse_existing(out, force)
    averaged = wants_averaged(checkpoint, ema)
    verdict = None
    with working(f"reading {checkpoint}", as_json):
        if model is not None or opened is not None:
            weights = load_weights(checkpoint, averaged_key(checkpoint) if averaged else None)
            plain = host_state_dict(weights)
            if model is not None:
                _check_strictly(load_model(model, arg, num_classes), plain, model)
            if opened is not None and own_claim is not None:
                verdict = verify(plain, opened, own_claim)
                check_signature(verdict)
        left_out = strip_checkpoint(checkpoint, out, ema=averaged, overwrite=force)
    record = {
        "file": str(out),
        "left_out": left_out,
        "matched": verdict and verdict.matched,
        "total": verdict and verdict.total,
        "averaged": averaged,
        "checked_with": model,
    }
    text = f"{out}: {left_out} tensors of private branches left out"
    if not left_out:
        text = f"{out}: there was no private branch to leave out"
    if averaged:
        text += "; these are the averaged weights"
    if model is not None:
        text += f"; {model} loads it strictly"
    if verdict is not None:
        text += f"; {verdict.matched} of {verdict.total} bits are in"
    emit(record, text, as_json)


@command
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, with private branches or not.")],
    out: Annotated[Path, typer.Argument(help="New file; the folder for hf.")],
    to: Annotated[str, typer.Option(help="safetensors, onnx, torch-export or hf.")] = "safetensors",
    ema: Averaged = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"The plain model, where the checkpoint does not name it: {MODEL_HELP}",
            show_default=False,
        ),
    ] = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    input_size: InputSize = None,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    own_claim: Annotated[
        Path | None,
        typer.Option(
            "--claim",
            help="For hf: the claim on these weights, whose digest the card is to name.",
            show_default=False,
        ),
    ] = None,
    contact: Annotated[
        str,
        typer.Option(help="For hf: whom the card names for questions about licences and copies."),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a plain model for deployment; one with traces of a private branch is refused.

    For hf: weights, timm's config.json with the size and the preparation of pictures that the
    training validated with, and a model card. The card says that the model is marked if --claim or
    --contact is given, and nothing of it otherwise.
    """
    from passportize.release.exporting import export as write

    _refuse_existing(out, force)
    given = given_preprocessing(img_size, mean, std)
    if to != "hf" and (own_claim is not None or contact or given):
        raise InvalidArgument("--claim, --contact, --img-size, --mean and --std go with --to hf")
    with working(f"exporting {checkpoint}", as_json):
        averaged = wants_averaged(checkpoint, ema)
        made = load_model(model, arg, num_classes) if model is not None else None
        preprocessing = notice = None
        if to == "hf":
            made = made if made is not None else model_of_checkpoint(checkpoint)
            preprocessing, notice = _for_hub(checkpoint, made, averaged, given, own_claim, contact)
        write(
            checkpoint,
            out,
            to=to,
            model=made,
            example_inputs=example_of(input_size),
            ema=averaged,
            preprocessing=preprocessing,
            notice=notice,
        )
    record = {"file": str(out), "format": to, "averaged": averaged}
    text = f"{out}: plain model as {to}" + ("; the averaged weights" if averaged else "")
    emit(record, text, as_json)


def _for_hub(
    checkpoint: Path,
    model: nn.Module,
    averaged: bool,
    given: dict[str, Any],
    own_claim: Path | None,
    contact: str,
) -> tuple[Preprocessing | None, Notice | None]:
    """How pictures are prepared, and what the card says of the mark."""
    from passportize.integrations.timm.preprocessing import preprocessing_of
    from passportize.release.claim_file import load_claim
    from passportize.release.notice import Notice
    from passportize.release.weights_digest import weights_digest

    preprocessing = None
    if hasattr(model, "pretrained_cfg"):
        preprocessing = preprocessing_of(checkpoint, model, **given)
    if own_claim is None:
        return preprocessing, Notice(contact) if contact else None
    claim = load_claim(own_claim)
    key = averaged_key(checkpoint) if averaged else None
    if weights_digest(host_state_dict(load_weights(checkpoint, key))) != claim.weights:
        raise ClaimMismatch(
            f"{own_claim} is on other weights than those of {checkpoint}; give the claim on these, "
            "or leave it out"
        )
    return preprocessing or claim.preprocessing, Notice(contact, claim.digest())


def _refuse_existing(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already; choose another name, or give --force")


def _check_strictly(made: nn.Module, plain: dict[str, Any], name: str) -> None:
    try:
        made.load_state_dict(plain, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{name} does not load the stripped weights: {detail}; check --model and --arg"
        ) from None
