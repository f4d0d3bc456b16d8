"""From a training checkpoint to the file that can be released."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from passportize.errors import CheckpointError
from passportize.release.checkpoint import (
    AVERAGED_KEYS,
    host_state_dict,
    load_weights,
    read_checkpoint,
    save_weights,
)
from passportize.utils.files import write_atomically

__all__ = ["averaged_key", "strip_checkpoint"]


def strip_checkpoint(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    ema: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the plain weights of a training checkpoint to a file of their own.

    What else a checkpoint holds stays behind: private branches, the optimizer, whose state has the
    shapes of private parameters, and the command line.

    Args:
        path_in: A torch checkpoint or safetensors file, with private branches or without.
        path_out: Where to: safetensors if the name ends so, else a torch file with the one entry
            ``"state_dict"``, as ``timm.create_model(checkpoint_path=)`` takes it.
        ema: Take the averaged weights.
        overwrite: Replace an existing file.

    Returns:
        The number of private tensors that were left out.

    Raises:
        CheckpointError: The file cannot be read, holds no such weights, or the other cannot be
            written.
    """
    weights = load_weights(path_in, averaged_key(path_in) if ema else None)
    plain = host_state_dict(weights)
    if Path(path_out).suffix == ".safetensors":
        save_weights(path_out, plain, overwrite=overwrite)
    else:
        buffer = io.BytesIO()
        torch.save({"state_dict": OrderedDict(plain)}, buffer)
        write_atomically(path_out, buffer.getvalue(), overwrite=overwrite, error=CheckpointError)
    return len(weights) - len(plain)


def averaged_key(path: str | os.PathLike[str]) -> str:
    """Where in a training checkpoint the averaged weights are.

    Raises:
        CheckpointError: There are none.
    """
    content = read_checkpoint(path)
    for key in AVERAGED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return key
    raise CheckpointError(
        f"{path}: it holds no averaged weights (EMA); train with --model-ema, or take the others"
    )
