"""claim and release: from the checkpoint that will be released to what is published and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from passportize.cli.data_input import (
    BatchSize,
    Data,
    ImgSize,
    Mean,
    Std,
    given_preprocessing,
    load_data,
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
from passportize.cli.terminal import AsJson, command, counting, emit, progress, working
from passportize.cli.weights_input import Averaged, wants_averaged
from passportize.config import DEEPER_SHARE, PassportConfig
from passportize.errors import ClaimFileError, InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.preprocessing import Preprocessing

__all__ = ["claim", "release"]

Checkpoint = Annotated[
    Path, typer.Argument(help="The training checkpoint whose weights will be released.")
]
OwnPassport = Annotated[Path, typer.Option("--passport", help="The passport of the training.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Formulation of the training, where the checkpoint does not hold it: loops of your "
        "own, and timm before 1.0.27.",
        show_default=False,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="Likewise the norms that were bound; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Likewise another setting of the training; repeatable.",
        show_default=False,
    ),
]


@command
def claim(
    checkpoint: Checkpoint,
    passport: OwnPassport,
    out: Annotated[Path, typer.Option("--out", "-o", help="The new file.")] = Path(
        "owner.claim.safetensors"
    ),
    ema: Averaged = None,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    formulation: Preset = None,
    where: Where = None,
    settings: Settings = None,
    input_size: InputSize = None,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the claim on the weights of a training checkpoint: the best, the averaged, any.

    Weights that do not carry the signature are refused, for a claim on them would prove nothing.
    """
    from passportize.integrations.timm.release_folder import check_signature
    from passportize.release.checkpoint import host_state_dict
    from passportize.release.claim import claim_of
    from passportize.release.claim_file import write_claim
    from passportize.verification.verification import verify

    if out.exists():
        raise ClaimFileError(f"{out} exists already; choose another --out, or move it away")
    opened = open_passport(passport, passphrase_file)
    asked = _Asked(model, num_classes, arg, formulation, where, settings, input_size)
    with working(f"reading {checkpoint}", as_json):
        averaged = wants_averaged(checkpoint, ema)
        restored = asked.restored(checkpoint, opened, averaged)
        prepared = _prepared(checkpoint, restored, given_preprocessing(img_size, mean, std))
        made = claim_of(restored, prepared)
        verdict = verify(host_state_dict(restored), opened, made)
        check_signature(verdict)
        write_claim(made, out)
    record = {
        "file": str(out),
        "digest": made.digest(),
        "weights": made.weights,
        "checkpoint": str(checkpoint),
        "averaged": averaged,
        "matched": verdict.matched,
        "total": verdict.total,
        "strength": verdict.strength,
        "preprocessing": prepared and prepared.to_dict(),
    }
    lines = [
        f"{out}: claim on the {'averaged ' if averaged else ''}weights of {checkpoint}",
        f"signature:   {verdict.matched} of {verdict.total} bits, {verdict.strength:.0f} bits of "
        "strength",
        f"pictures:    {prepared or 'not recorded'}",
        f"weights:     sha256 {made.weights}",
        f"digest:      {made.digest()} (publish this before the weights)",
    ]
    emit(record, "\n".join(lines), as_json)


@command
def release(
    checkpoint: Checkpoint,
    passport: OwnPassport,
    out: Annotated[Path, typer.Option("--out", "-o", help="The new folder.")] = Path("release"),
    own_claim: Annotated[
        Path | None,
        typer.Option(
            "--claim",
            help="A claim on these weights that there is already; else one is made.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", help="Export this too: onnx or torch-export; repeatable.", show_default=False
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="The owner's inputs that the training named: the signature is put in once more by "
            "them, so that it lies in what the layers do and noise does not cover it.",
            show_default=False,
        ),
    ] = None,
    contact: Annotated[
        str | None,
        typer.Option(
            help="Let the model card say that the model is marked, with the claim's digest, and "
            "whom to ask about licences and copies; it says nothing of it otherwise.",
            show_default=False,
        ),
    ] = None,
    no_commit: Annotated[
        bool, typer.Option("--no-commit", help="Make no release commitment.")
    ] = False,
    ema: Averaged = None,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    formulation: Preset = None,
    where: Where = None,
    settings: Settings = None,
    input_size: InputSize = None,
    data: Data = None,
    batch_size: BatchSize = 128,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make one folder of a training checkpoint: what to commit to, to publish and to keep.

    The weights are stripped, claimed, read back and verified, committed to and described by a model
    card; SUMMARY.md says what to do with each file. With --data both branches are measured, too.
    """
    from passportize.integrations.timm.release_folder import PROGRAMS, make_release

    formats = tuple(dict.fromkeys(to or ()))
    unknown = [name for name in formats if name not in PROGRAMS]
    if unknown:
        raise InvalidArgument(f"--to {unknown[0]}: use {' or '.join(PROGRAMS)}")
    if inputs is not None and own_claim is not None:
        raise InvalidArgument("--inputs changes the weights, so the claim on them is made anew")
    opened = open_passport(passport, passphrase_file)
    asked = _Asked(model, num_classes, arg, formulation, where, settings, input_size, inputs)
    with working(f"reading {checkpoint}", as_json):
        averaged = wants_averaged(checkpoint, ema)
        restored = asked.restored(checkpoint, opened, averaged)
        prepared = _prepared(checkpoint, restored, given_preprocessing(img_size, mean, std))
        loader = load_data(data, restored, batch_size, prepared) if data is not None else None
    if loader is not None:
        loader = progress(loader, "both branches", as_json)
    if inputs is not None:
        _put_in_once_more(restored, inputs, as_json)
    made = make_release(
        restored,
        opened,
        out,
        source=str(checkpoint),
        averaged=averaged,
        preprocessing=prepared,
        claim=own_claim,
        formats=formats,
        example_inputs=example_of(input_size),
        commit=not no_commit,
        loader=loader,
        contact=contact,
    )
    verdict = made.verdict
    lines = [
        f"{out}: release of the {'averaged ' if averaged else ''}weights of {checkpoint}",
        f"signature:   {verdict.matched} of {verdict.total} bits, {verdict.strength:.0f} bits of "
        "strength, read back from the released file",
        f"pictures:    {made.preprocessing or 'not recorded'}",
    ]
    if verdict.public_accuracy is not None:
        lines.append(f"fidelity:    {verdict.fidelity_reason}")
    lines += [
        f"claim:       {made.claim}",
        f"read {out / 'SUMMARY.md'}: what to commit to first, what to publish, what to keep",
    ]
    emit(made.to_dict(), "\n".join(lines), as_json)


def _put_in_once_more(restored: nn.Module, inputs: Path, as_json: bool) -> None:
    """Put the signature into trained rows where the owner's inputs use them."""
    from passportize.layers.model import switch_of
    from passportize.release.inputs_file import read_inputs
    from passportize.training.embedding import embed_signature

    batches = read_inputs(inputs, switch_of(restored).config.inputs, "release")
    with counting("turning rows", as_json) as step:
        embed_signature(restored, calibration=batches, output_share=DEEPER_SHARE, progress=step)


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the model and of its training."""

    model: str | None
    num_classes: int | None
    arg: list[str] | None
    formulation: str | None
    where: list[str] | None
    settings: list[str] | None
    input_size: str | None
    inputs: Path | None = None

    def restored(self, checkpoint: Path, passport: Passport, averaged: bool) -> nn.Module:
        """The passportized model of the checkpoint."""
        from passportize.integrations.timm.options import setting
        from passportize.integrations.timm.release import restore_checkpoint
        from passportize.release.inputs_file import inputs_digest

        if self.model is None and (self.num_classes is not None or self.arg):
            raise InvalidArgument("--num-classes and --arg go with --model")
        config = None
        if self.formulation is not None or self.settings:
            values: dict[str, Any] = dict(setting(text) for text in self.settings or ())
            if self.inputs is not None:
                values.setdefault("inputs", inputs_digest(self.inputs))
            config = PassportConfig.preset(self.formulation or "keyed", **values)
        made = None
        if self.model is not None:
            made = load_model(self.model, self.arg, self.num_classes)
        return restore_checkpoint(
            checkpoint,
            passport,
            ema=averaged,
            model=made,
            config=config,
            where=self.where or None,
            example_inputs=example_of(self.input_size),
        )


def _prepared(checkpoint: Path, restored: nn.Module, given: dict[str, Any]) -> Preprocessing | None:
    from passportize.integrations.timm.preprocessing import preprocessing_of

    return preprocessing_of(checkpoint, restored, **given)
