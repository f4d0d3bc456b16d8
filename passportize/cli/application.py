"""The command line as one typer application."""

from __future__ import annotations

import typer

from passportize.cli import arbitrate as arbitrating
from passportize.cli import attack as attacking
from passportize.cli import audit as auditing
from passportize.cli import commit as committing
from passportize.cli import demo as showcase
from passportize.cli import mark as marking
from passportize.cli import models, owner_inputs
from passportize.cli import passports as keys
from passportize.cli import release as releasing
from passportize.cli import timm_train as launching
from passportize.cli import verify as proof
from passportize.cli.group import Commands

__all__ = ["application"]

BEFORE, RELEASE, COPY, LOOK = "Before and in training", "Release", "A copy turns up", "Look"

AFTERWORD = """
Exit codes: 0 accepted or done, 1 refused, 2 everything else.

Passphrases come from --passphrase-file, $PASSPORTIZE_PASSPHRASE or a prompt, never from the command
line. With --json, standard output holds one JSON document, also where the command line makes no
sense.

Models are named as timm takes them (resnet18, hf-hub:org/name, local-dir:folder), or as a function
of your own (module:function), which is imported from the current folder.
"""


def application() -> typer.Typer:
    """All commands, ready to be called."""
    app = typer.Typer(
        name="passportize",
        cls=Commands,
        help="Ownership passports for PyTorch models: protect, train, release, prove.",
        epilog=AFTERWORD,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(rich_help_panel=BEFORE)(keys.keygen)
    app.command(rich_help_panel=BEFORE)(models.plan)
    app.command(rich_help_panel=BEFORE)(owner_inputs.inputs)
    app.command(
        "timm-train",
        rich_help_panel=BEFORE,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(launching.timm_train)
    app.command(rich_help_panel=BEFORE)(marking.mark)
    app.command(rich_help_panel=RELEASE)(releasing.release)
    app.command(rich_help_panel=RELEASE)(releasing.claim)
    app.command(rich_help_panel=RELEASE)(models.strip)
    app.command(rich_help_panel=RELEASE)(models.export)
    app.command(rich_help_panel=RELEASE)(auditing.audit)
    app.command(rich_help_panel=RELEASE)(committing.commit)
    app.command("open", rich_help_panel=RELEASE)(committing.open_release)
    app.command(rich_help_panel=COPY)(proof.verify)
    app.command("mark-copy", rich_help_panel=RELEASE)(marking.mark_copy)
    app.command(rich_help_panel=COPY)(arbitrating.arbitrate)
    app.command(rich_help_panel=COPY)(marking.identify)
    app.command(rich_help_panel=LOOK)(attacking.attack)
    app.command(rich_help_panel=LOOK)(keys.inspect)
    app.command(rich_help_panel=LOOK)(keys.commitment)
    app.command(rich_help_panel=LOOK)(showcase.demo)

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: bool = typer.Option(False, "--version", help="Print the version."),
    ) -> None:
        if version:
            from passportize import __version__

            typer.echo(__version__)
            raise typer.Exit

    return app
