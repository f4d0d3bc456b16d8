"""attack: any attack of the bench on released weights, and what is left of the owner's claim."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from passportize.cli.attack_output import emit_list, emit_result
from passportize.cli.data_input import (
    BatchSize,
    Data,
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
    literal,
    load_model,
)
from passportize.cli.terminal import REFUSED, AsJson, command, counting, leave, working
from passportize.cli.weights_input import Averaged, load_checkpoint
from passportize.errors import CheckpointError, InvalidArgument

__all__ = ["attack"]


@command
def attack(
    name: Annotated[
        str | None, typer.Argument(help="Name of the attack.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Argument(help="The released weights.", show_default=False)
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="Say what attacks there are, and end.")
    ] = False,
    data: Data = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--test",
            help="Labelled data to measure accuracies on, as for --data; by default the same.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="How many of --data the attacker has.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Training steps, or tries.")] = 100,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of the attacker.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of all that the attacker draws.")] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="Option of the attack, share=0.3 say; repeatable. --list has them.",
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="By which the weights are protected; by default what --claim says.",
            show_default=False,
        ),
    ] = None,
    passport: Annotated[
        Path | None,
        typer.Option(help="The owner's passport, to judge with afterwards.", show_default=False),
    ] = None,
    claim: Annotated[
        Path | None, typer.Option(help="The owner's claim, likewise.", show_default=False)
    ] = None,
    leaked: Annotated[bool, typer.Option("--leaked", help="Let the attacker have both.")] = False,
    own_passport: Annotated[
        Path | None,
        typer.Option(
            "--own-passport",
            help="The attacker's passport, without a passphrase; by default one drawn from --seed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The attacked weights: a new file.", show_default=False),
    ] = None,
    ema: Averaged = None,
    model: PlainModel = None,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    input_size: InputSize = None,
    batch_size: BatchSize = 64,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Attack released weights: 0 the mark holds or was not asked about, 1 it is broken.

    With --data, --passport and --claim the scheme's own verification says what is left. A removal
    counts if it costs no more than ten points of accuracy, a forgery if its claim is accepted.
    """
    from passportize.attacks import Means, find_attack, rate, run_attack
    from passportize.passport.passport import Passport
    from passportize.release.checkpoint import save_weights
    from passportize.release.claim_file import load_claim
    from passportize.schemes import Release, find_scheme

    if list_all:
        emit_list(as_json)
        return
    if name is None or checkpoint is None:
        raise InvalidArgument("give the name of an attack and the released weights; or --list")
    entry = find_attack(name)
    options = _options(option or (), entry.options)
    if (passport is None) != (claim is None):
        raise InvalidArgument("--passport and --claim go together: they judge what is left")
    if leaked and passport is None:
        raise InvalidArgument("--leaked needs --passport and --claim")
    if passport is not None and data is None and test is None:
        raise InvalidArgument("--passport and --claim need --data or --test, to measure accuracies")
    if out is not None and out.exists():
        raise CheckpointError(f"{out} exists already; choose another --out, or move it away")
    owner = None if passport is None else open_passport(passport, passphrase_file)
    owned = None if claim is None else load_claim(claim)
    if scheme is None and owned is not None:
        scheme = owned.config.formulation
    protection = None if scheme is None else find_scheme(scheme)
    if own_passport is not None:
        mine = Passport.load(own_passport)
    else:
        secret = hashlib.sha256(f"passportize attack/{seed}".encode()).digest()
        mine = Passport.generate("Mallory", date="2026-01-01", secret=secret)
    with working(f"reading {checkpoint}", as_json):
        plain = load_checkpoint(checkpoint, model, num_classes, arg, ema)
        given = given_preprocessing(img_size, mean, std)
        recorded = None if owned is None else owned.preprocessing
        batches, measured = (
            some_data(source, plain, count, batch_size, given, recorded)[0] if source else []
            for source, count in ((data, images), (test or data, None))
        )
    with counting(entry.name, as_json) as step:
        outcome = run_attack(
            entry,
            plain,
            Means(
                data=batches,
                steps=steps,
                learning_rate=learning_rate,
                seed=seed,
                passport=mine,
                scheme=protection,
                claim=owned if leaked else None,
                leaked=owner if leaked else None,
                fresh=None if model is None else lambda: load_model(model, arg, num_classes),
                example_inputs=example_of(input_size),
                on_step=step,
            ),
            **options,
        )
    if out is not None:
        save_weights(out, outcome.model.state_dict())
    rating = None
    if owner is not None and owned is not None and protection is not None:
        with working("judging", as_json):
            rating = rate(Release(protection, plain, owner, owned), outcome, measured)
    emit_result(outcome, rating, checkpoint, out, as_json)
    if rating is not None and rating.succeeded:
        leave(REFUSED)


def _options(given: Sequence[str], known: Any) -> dict[str, Any]:
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise InvalidArgument(
                f"--option {text}: give NAME=VALUE; this attack has {', '.join(known) or 'none'}"
            )
        options[key] = literal(value)
        wanted = type(known[key])
        if wanted is float and isinstance(options[key], int):
            options[key] = float(options[key])
        if not isinstance(options[key], wanted):
            raise InvalidArgument(
                f"--option {text}: give a {wanted.__name__}, as {known[key]!r} is"
            )
    return options
