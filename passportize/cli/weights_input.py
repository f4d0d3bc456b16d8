"""Which weights of a training checkpoint a command takes: the averaged ones where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from passportize.release.checkpoint import AVERAGED_KEYS, read_checkpoint

__all__ = ["Averaged", "wants_averaged"]

Averaged = Annotated[
    bool | None,
    typer.Option(
        "--ema/--no-ema",
        help="Take the averaged weights, or the others. By default the averaged ones where the "
        "checkpoint has them, as timm's own loader does.",
        show_default=False,
    ),
]


def wants_averaged(checkpoint: Path, ema: bool | None) -> bool:
    """Whether the averaged weights of a checkpoint are meant.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    if ema is not None:
        return ema
    content = read_checkpoint(checkpoint)
    return isinstance(content, Mapping) and any(
        isinstance(content.get(key), Mapping) for key in AVERAGED_KEYS
    )
