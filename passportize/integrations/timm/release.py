"""From a checkpoint of timm to the claim on its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from passportize.config import PassportConfig
from passportize.errors import CheckpointError, SurgeryError, TracingError, WrongPassport
from passportize.integrations.branch_state import TASK_KEY, BranchRecord, join_state
from passportize.integrations.timm.preprocessing import preprocessing_of
from passportize.layers.private_keys import private_keys
from passportize.passport.passport import Passport
from passportize.release.checkpoint import (
    load_weights,
    model_of_checkpoint,
    read_checkpoint,
)
from passportize.release.claim import Claim
from passportize.release.claim_file import save_claim
from passportize.release.preprocessing import Preprocessing
from passportize.release.strip import averaged_key
from passportize.surgery.branches import put_in_branches
from passportize.surgery.surgery import passportize

__all__ = ["claim_checkpoint", "restore_checkpoint"]


def claim_checkpoint(
    checkpoint: str | os.PathLike[str],
    passport: Passport,
    claim: str | os.PathLike[str],
    *,
    ema: bool = False,
    model: nn.Module | None = None,
    config: PassportConfig | None = None,
    where: str | Sequence[str] | None = None,
    example_inputs: Any = None,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
) -> Claim:
    """Write the claim on the weights of a training checkpoint: the best one, say, or the averaged.

    Args:
        checkpoint: A checkpoint that the launcher's run has written.
        passport: The passport of that run.
        claim: Where to.
        ema: On the averaged weights.
        model: A plain model of the right shape; made by timm from the checkpoint's own record of
            the command line by default.
        config: The run's formulation; only for checkpoints of timm before 1.0.27, later ones hold
            it.
        where: Likewise the norms that were bound.
        example_inputs: Likewise what the model takes, where timm does not say it.
        preprocessing: How pictures are prepared; as the checkpoint's command line says by default.
        overwrite: Replace an existing file.

    Raises:
        CheckpointError: The file cannot be read or holds no private branch.
        WrongPassport: It was trained with another passport.
        ClaimError: The claim cannot be written.
    """
    restored = restore_checkpoint(
        checkpoint,
        passport,
        ema=ema,
        model=model,
        config=config,
        where=where,
        example_inputs=example_inputs,
    )
    if preprocessing is None:
        preprocessing = preprocessing_of(checkpoint, restored)
    return save_claim(restored, claim, preprocessing=preprocessing, overwrite=overwrite)


def restore_checkpoint(
    checkpoint: str | os.PathLike[str],
    passport: Passport,
    *,
    ema: bool = False,
    model: nn.Module | None = None,
    config: PassportConfig | None = None,
    where: str | Sequence[str] | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """The passportized model of a training checkpoint, in eval mode.

    Args and errors: see :func:`claim_checkpoint`.
    """
    content = read_checkpoint(checkpoint)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{checkpoint}: it is no training checkpoint; give one of timm")
    weights: Mapping[str, Any] = load_weights(checkpoint, averaged_key(checkpoint) if ema else None)
    state = content.get("task_state_ema" if ema else "task_state")
    branch = state.get(TASK_KEY) if isinstance(state, Mapping) else None
    bits_only = config is not None and not config.has_private_pass
    if branch is None and not bits_only and not private_keys(weights):
        raise CheckpointError(f"{checkpoint}: it holds no private branch; it was made without one")
    model = model if model is not None else model_of_checkpoint(checkpoint)
    if branch is not None:
        record = BranchRecord.from_json(str(branch.get("record", "")))
        if not passport.check_commitment(record.commitment):
            raise WrongPassport(
                f"{checkpoint}: it was trained with another passport (commitment "
                f"{record.commitment[:12]}...); give that one"
            )
        marking = record.marking
        try:
            put_in_branches(model, marking.sites, passport, marking.config, marking.configs)
        except (AttributeError, SurgeryError, TracingError) as error:
            raise CheckpointError(
                f"{checkpoint}: its private branches do not fit {type(model).__name__} ({error}); "
                "give the plain model of the training with model="
            ) from None
    else:
        passportize(model, passport, config=config, where=where, example_inputs=example_inputs)
    try:
        model.load_state_dict(join_state(model, weights, branch))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint}: it does not fit {type(model).__name__}: {error}; give the plain model "
            "with model=, and config= and where= of the run where it is from before timm 1.0.27"
        ) from None
    return model.eval()
