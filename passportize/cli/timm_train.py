"""timm-train: timm's own training script, with a passport."""

from __future__ import annotations

import sys

import typer

from passportize.cli.terminal import UNDECIDED, command, leave

__all__ = ["timm_train"]


@command
def timm_train(context: typer.Context) -> None:
    """Run timm's train.py, unedited, with a passport: timm-train --passport FILE train.py ..."""
    from passportize.integrations.timm.launcher import launch

    try:
        launch(context.args)
    except SystemExit as end:
        if end.code in (None, 0):
            return
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        leave(UNDECIDED)
