"""How a run of timm's train script prepared its pictures, from what its checkpoint says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from passportize.release.checkpoint import read_checkpoint
from passportize.release.preprocessing import Preprocessing

__all__ = ["preprocessing_of"]

# What timm's parser always has; a script of one's own without it prepares pictures its own way.
_OF_TIMM = {"img_size", "mean", "std", "interpolation"}


def preprocessing_of(
    checkpoint: str | os.PathLike[str], model: nn.Module, **given: Any
) -> Preprocessing | None:
    """What the run's validation did to pictures; None where the checkpoint does not say it.

    Args:
        checkpoint: A training checkpoint.
        model: The model it is of, with timm's ``pretrained_cfg``.
        **given: Values in timm's names that count more than the checkpoint's: ``img_size=96``.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        InvalidArgument: A value makes no sense.
    """
    content = read_checkpoint(checkpoint)
    recorded = content.get("args") if isinstance(content, Mapping) else None
    arguments = vars(recorded) if hasattr(recorded, "__dict__") else {}
    if not given and not set(arguments) >= _OF_TIMM:
        return None
    from timm.data import resolve_data_config

    settings = {key: value for key, value in arguments.items() if value is not None}
    if "img_size" in given:
        settings.pop("input_size", None)
    return Preprocessing.from_timm(resolve_data_config({**settings, **given}, model=model))
