"""The command line as one typer application."""

from __future__ import annotations

import typer

from passportize.cli import commit as committing
from passportize.cli import demo as showcase
from passportize.cli import models
from passportize.cli import passports as keys
from passportize.cli import timm_train as launching
from passportize.cli import verify as proof

__all__ = ["application"]


def application() -> typer.Typer:
    """All commands, ready to be called."""
    app = typer.Typer(
        name="passportize",
        help="Ownership passports for PyTorch models: protect, train, strip, prove.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command()(keys.keygen)
    app.command()(models.plan)
    app.command()(showcase.demo)
    app.command()(models.strip)
    app.command()(models.export)
    app.command()(proof.verify)
    app.command()(keys.inspect)
    app.command()(keys.commitment)
    app.command()(committing.commit)
    app.command("open")(committing.open_release)
    app.command(
        "timm-train",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(launching.timm_train)

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
