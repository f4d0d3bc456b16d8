"""Passports that commands are given, and their passphrases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.terminal import is_interactive
from passportize.errors import InvalidArgument, WrongPassphrase
from passportize.passport.file import PASSPHRASE
from passportize.passport.passport import Passport

__all__ = ["PassphraseFile", "TimestampRoots", "new_passphrase", "open_passport"]

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File whose first line is the passphrase; else ${PASSPHRASE} counts, else you are "
        "asked.",
        show_default=False,
    ),
]

TimestampRoots = Annotated[
    Path | None,
    typer.Option(
        "--tsa-roots",
        help="PEM file of the root certificates that you trust to give the time.",
        show_default=False,
    ),
]


def open_passport(path: Path, passphrase_file: Path | None) -> Passport:
    """Load a passport, with its passphrase from a file, the environment or a prompt."""
    if passphrase_file is not None:
        return Passport.load(path, _first_line(passphrase_file))
    try:
        return Passport.load(path)
    except WrongPassphrase:
        given = os.environ.get(PASSPHRASE)
        if given is None:
            if not is_interactive():
                raise WrongPassphrase(
                    f"{path} is sealed, and there is no terminal to ask for its passphrase; set "
                    f"{PASSPHRASE} or give --passphrase-file"
                ) from None
            given = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
        return Passport.load(path, given)


def new_passphrase(passphrase_file: Path | None, without: bool) -> str | None:
    """The passphrase for a new passport file; None if it is to be without."""
    if without:
        if passphrase_file is not None:
            raise InvalidArgument("--no-passphrase and --passphrase-file exclude each other")
        return None
    if passphrase_file is not None:
        return _first_line(passphrase_file)
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    if not is_interactive():
        raise InvalidArgument(
            f"there is no terminal to ask for a passphrase; set {PASSPHRASE}, or give "
            "--passphrase-file or --no-passphrase"
        )
    asked: str = typer.prompt(
        "Passphrase for the new passport", hide_input=True, confirmation_prompt=True, err=True
    )
    return asked


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidArgument(f"--passphrase-file {path}: {reason}") from None
