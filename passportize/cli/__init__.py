"""The command line. ``passportize --help`` lists the commands."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``passportize`` command; says what to install where that is missing."""
    try:
        from passportize.cli.application import application
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"the command line needs {error.name}, which is not installed: "
            "pip install 'passportize[cli]'\n"
        )
        sys.exit(2)
    application()()
