"""timm-train: timm's own training script, with a passport."""

from __future__ import annotations

import typer

from passportize.cli.terminal import errors_shown

__all__ = ["timm_train"]


def timm_train(context: typer.Context) -> None:
    """Run timm's train.py, unedited, with a passport: timm-train --passport FILE train.py ..."""
    from passportize.integrations.timm.launcher import launch

    with errors_shown():
        launch(context.args)
