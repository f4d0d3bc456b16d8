"""A suspect whose layers are fitted anew to what they compute on the owner's inputs.

Who has inputs can cover a mark with noise in directions that these hardly use, and the network does
not mind. What its layers compute on the owner's inputs is what it lives by, so what they look like
when fitted to that alone is read as well. Inputs and suspect do not know the key, on which the
digest of the inputs has a say; whatever becomes of a stranger's weights so, each bit still matches
with probability one half.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.release.checkpoint import host_state_dict
from passportize.thresholds import Penalty
from passportize.training.refitting import refit_weights
from passportize.utils.progress import Progress
from passportize.verification.suspect import Suspect, open_suspect

__all__ = ["refit_suspect", "refit_tensors"]


def refit_suspect(
    opened: Suspect, batches: Sequence[Any], penalty: Penalty, progress: Progress | None = None
) -> Suspect | str:
    """The suspect with its layers fitted anew, or why that cannot be done; it stays as it is.

    Args:
        opened: The suspect.
        batches: The owner's inputs.
        penalty: As in :func:`passportize.training.refitting.refit_weights`.
        progress: Called with batches done and their number.

    Raises:
        InvalidArgument: The suspect cannot be run on them.
    """
    if opened.module is None:
        return opened.no_module
    if not opened.whole:
        # What is missing would be the claimant's, and with it what later layers get.
        return "the suspect lacks weights of model="
    module = copy.deepcopy(opened.module)
    try:
        done = refit_weights(module, batches, penalty=penalty, progress=progress)
    except InvalidArgument:
        raise
    except Exception as error:  # whatever somebody else's model raises
        raise InvalidArgument(
            f"verify: the suspect cannot be run on inputs= ({type(error).__name__}: "
            f"{str(error)[:200]}); give a suspect that takes them, or leave them out"
        ) from None
    if not done:
        return "none of its layers shows what it multiplies its weight with"
    fitted = open_suspect(module, None)
    fitted.folded = opened.folded
    return fitted


def refit_tensors(
    tensors: Mapping[str, Tensor], module: nn.Module, batches: Sequence[Any], penalty: Penalty
) -> dict[str, Tensor]:
    """Weights fitted anew in the same way, for a comparison; as they are where they do not fit.

    Args:
        tensors: Weights by name.
        module: A plain model of their architecture, which stays as it is.
        batches: The owner's inputs.
        penalty: As in :func:`passportize.training.refitting.refit_weights`.
    """
    twin = copy.deepcopy(module)
    try:
        twin.load_state_dict(dict(tensors))
        refit_weights(twin, batches, penalty=penalty)
    except Exception:  # another architecture
        return dict(tensors)
    return {**tensors, **host_state_dict(twin)}
