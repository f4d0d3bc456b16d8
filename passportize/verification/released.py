"""The weights that were released, and the live model that they belong to where one was given."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.layers.model import is_passportized
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import Claim
from passportize.release.weights_digest import weights_digest
from passportize.suspects.reading import read_suspect
from passportize.verification.suspect import Weights

__all__ = ["architecture_of", "open_released", "open_weights", "models_given"]


def open_weights(weights: Weights, what: str) -> dict[str, Tensor]:
    """The tensors of weights by name.

    Args:
        weights: A plain model, a state dict or a file.
        what: What they are, for errors.

    Raises:
        InvalidArgument: They are something else.
        CheckpointError: The file cannot be read.
    """
    if isinstance(weights, (str, os.PathLike)):
        state: Any = read_suspect(weights).kept
    elif isinstance(weights, (nn.Module, Mapping)):
        state = weights
    else:
        raise InvalidArgument(
            f"{what} must be a plain model, a state dict or the path of a file of weights, not "
            f"{type(weights).__name__}"
        )
    return {
        name: value.detach()
        for name, value in host_state_dict(state).items()
        if isinstance(value, Tensor)
    }


def open_released(released: Weights, claim: Claim | None) -> dict[str, Tensor]:
    """The released weights, checked against the claim.

    Raises:
        InvalidArgument: They are not those that the claim names, or there is no claim.
        CheckpointError: The file cannot be read.
    """
    if claim is None:
        raise InvalidArgument(
            "verify: released= needs the claim, whose digest says which weights were released; "
            "weights that nothing binds to a date prove nothing"
        )
    tensors = open_weights(released, "verify: released=")
    if weights_digest(tensors) != claim.weights:
        raise InvalidArgument(
            "verify: released= is not what the claim was made for, its digest differs; give the "
            "very weights that were released, unchanged and in their type"
        )
    return tensors


def models_given(
    suspect: Any, model: nn.Module | None, released: Weights | None
) -> tuple[nn.Module | None, nn.Module | None]:
    """What ``model=`` is: the suspect's architecture, or the released one beside a live suspect.

    Returns:
        Both; at most one of them is a model.
    """
    live = isinstance(suspect, nn.Module)
    if live and released is not None and not isinstance(released, nn.Module):
        return None, model
    return model, None


def architecture_of(
    released: Weights, tensors: Mapping[str, Tensor], model: nn.Module | None
) -> nn.Module | None:
    """The released model, live; None where nobody has given it.

    Args:
        released: As it was given.
        tensors: What is in it.
        model: A plain model of its architecture, or None.

    Raises:
        InvalidArgument: The released weights are not those of ``model``.
    """
    if isinstance(released, nn.Module):
        return None if is_passportized(released) else released
    if model is None:
        return None
    try:
        twin = copy.deepcopy(model)
        twin.load_state_dict(dict(tensors))
    except Exception as error:  # whatever its parts raise
        raise InvalidArgument(
            f"verify: beside a live suspect model= is the released architecture, but released= "
            f"does not load into {type(model).__name__} ({type(error).__name__}: {error}); give a "
            "plain model that takes exactly these weights"
        ) from None
    return twin.eval()
