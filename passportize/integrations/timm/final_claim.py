"""The claim at the end of a run: on the checkpoint that will be released, not on what is in memory.

timm ranks its checkpoints by the averaged weights where there are any, and its own loader takes
those; so does the claim.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from passportize.errors import CheckpointError
from passportize.integrations.branch_state import TASK_KEY, join_state
from passportize.integrations.timm.preprocessing import preprocessing_of
from passportize.release.checkpoint import AVERAGED_KEYS, load_weights, read_checkpoint
from passportize.release.claim_file import save_claim
from passportize.training.loss import signature_accuracy

__all__ = ["claim_run"]


def claim_run(
    model: nn.Module, savers: Sequence[Any], path: Path, which: str, ema: bool | None
) -> str:
    """Write the claim on a run's best or last checkpoint.

    Args:
        model: The passportized model of the run; it is left as it is.
        savers: The script's ``timm.utils.CheckpointSaver``, if it made any.
        path: Where to.
        which: ``"best"`` or ``"last"``; without a best one the last.
        ema: On the averaged weights; None: if there are any.

    Returns:
        In words which weights the claim is on.

    Raises:
        CheckpointError: A checkpoint cannot be read, or has no averaged weights.
        ClaimError: The claim cannot be made or written.
    """
    checkpoint = _checkpoint(savers, which)
    if checkpoint is None:
        if ema:
            raise CheckpointError(
                "--ema: the script wrote no checkpoint of timm, so there are no averaged weights "
                "to claim; claim them with passportize claim CHECKPOINT"
            )
        digest = save_claim(model, path).digest()
        return (
            f"the script wrote no checkpoint of timm; {path} is the claim on the final weights as "
            f"they were in memory, digest {digest}"
        )
    content = read_checkpoint(checkpoint)
    averaged = next((key for key in AVERAGED_KEYS if isinstance(content.get(key), Mapping)), None)
    if ema and averaged is None:
        raise CheckpointError(f"--ema: {checkpoint} holds no averaged weights; train with them")
    key = averaged if ema is not False else None
    state = content.get("task_state" if key is None else "task_state_ema")
    branch = state.get(TASK_KEY) if isinstance(state, Mapping) else None
    twin = copy.deepcopy(model)
    twin.load_state_dict(join_state(twin, load_weights(checkpoint, key), branch))
    claim = save_claim(twin, path, preprocessing=preprocessing_of(checkpoint, twin))
    metric = content.get("metric")
    found = f", metric {metric:.5g}" if isinstance(metric, (int, float)) else ""
    carried = 100 * signature_accuracy(twin)
    return (
        f"{path} is the claim on the {'averaged ' if key else ''}weights of {checkpoint} (epoch "
        f"{content.get('epoch')}{found}; {carried:.2f} % of the bits), digest {claim.digest()}. It "
        f"fits no other file: passportize release {checkpoint} --claim {path} --passport ..."
    )


def _checkpoint(savers: Sequence[Any], which: str) -> Path | None:
    """The file that will be released; None if none was written."""
    for saver in reversed(savers):
        folder, extension = Path(saver.checkpoint_dir), saver.extension
        best, last = folder / f"model_best{extension}", folder / f"last{extension}"
        if which == "best" and saver.best_epoch is not None and best.is_file():
            return best
        if last.is_file():
            return last
    return None
