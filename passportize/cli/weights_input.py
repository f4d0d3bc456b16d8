"""Which weights of a training checkpoint a command takes: the averaged ones where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from passportize.cli.model_input import load_model
from passportize.errors import CheckpointError
from passportize.release.checkpoint import AVERAGED_KEYS, read_checkpoint

__all__ = ["Averaged", "load_checkpoint", "wants_averaged"]

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


def load_checkpoint(
    checkpoint: Path,
    model: str | None,
    num_classes: int | None,
    arg: list[str] | None,
    ema: bool | None,
) -> nn.Module:
    """The plain model with the weights of a checkpoint, in eval mode.

    Args:
        checkpoint: File of weights, or a training checkpoint.
        model: As for :func:`~passportize.cli.model_input.load_model`; None where the checkpoint
            names it.
        num_classes: Classes of the model.
        arg: Arguments for making it.
        ema: Whether to take averaged weights; None for whatever there is.

    Raises:
        CheckpointError: The file cannot be read, or does not fit the model.
    """
    from passportize.release.checkpoint import host_state_dict, load_weights, model_of_checkpoint
    from passportize.release.strip import averaged_key

    averaged = wants_averaged(checkpoint, ema)
    weights = load_weights(checkpoint, averaged_key(checkpoint) if averaged else None)
    made = (
        load_model(model, arg, num_classes)
        if model is not None
        else model_of_checkpoint(checkpoint)
    )
    try:
        made.load_state_dict(host_state_dict(weights), strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{checkpoint} does not fit {type(made).__name__}: {detail}; check --model, "
            "--num-classes and --arg"
        ) from None
    return made.eval()
