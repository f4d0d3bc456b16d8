"""What is being verified: a live model, a state dict, or a file of weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import AlreadyPassportized, CheckpointError, InvalidArgument
from passportize.layers.model import is_passportized
from passportize.layers.wrappers import refuse_wrapped
from passportize.release.checkpoint import host_state_dict, load_weights
from passportize.verification.counterparts import find_counterparts, structure_of

__all__ = ["Suspect", "open_suspect"]


@dataclass
class Suspect:
    """A suspect, opened.

    Attributes:
        tensors: Its weights by name.
        carriers: Where bits are looked for: all tensors, also what looks like those of a private
            branch, or a thief would hide weights by calling them so.
        module: A live model with these weights: the suspect itself or a copy of ``model``; None
            where there is none.
        named: The module's name for each tensor of the file; empty where they are the same.
        whole: Whether the module has all of its weights from the suspect.
        notes: What the reader of a verdict should know.
    """

    tensors: dict[str, Tensor]
    module: nn.Module | None
    named: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    notes: list[str] = field(default_factory=list)
    carriers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.carriers = self.carriers or self.tensors


def open_suspect(suspect: Any, model: nn.Module | None) -> Suspect:
    """Open a suspect; neither it nor ``model`` is changed.

    Args:
        suspect: A plain model, a state dict, or the path of a file of weights.
        model: For weights, a plain model of their architecture.

    Raises:
        InvalidArgument: Neither, or ``model`` beside a model.
        AlreadyPassportized: The suspect or ``model`` carries private branches.
        WrappedModel: One of them is inside DDP, torch.compile or the like.
        CheckpointError: The file cannot be read, or its weights do not fit ``model``.
    """
    if isinstance(suspect, nn.Module):
        if model is not None:
            raise InvalidArgument(
                "verify: model= goes with a state dict or a file; the suspect is a model already"
            )
        _check_plain(suspect, "the suspect")
        return Suspect(_tensors(host_state_dict(suspect)), suspect)
    if isinstance(suspect, (str, os.PathLike)):
        place = str(Path(suspect))
        state: Mapping[str, Any] = load_weights(suspect)
    elif isinstance(suspect, Mapping):
        place, state = "the state dict", suspect
    else:
        raise InvalidArgument(
            "verify: the suspect must be a torch.nn.Module, a state dict or the path of a file of "
            f"weights, not {type(suspect).__name__}"
        )
    everything = _tensors(state)
    if not everything:
        raise InvalidArgument(f"verify: {place} holds no tensors by name")
    tensors = host_state_dict(everything)
    opened = Suspect(tensors, None, carriers=everything)
    if len(tensors) < len(everything):
        opened.notes.append(f"{place} has private branches too; only the plain part was looked at")
    if model is not None:
        if not isinstance(model, nn.Module):
            raise InvalidArgument(
                f"verify: model= must be a torch.nn.Module, not {type(model).__name__}"
            )
        _check_plain(model, "model=")
        _load_copy(opened, model, place)
    return opened


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {
        name: _dense(value.detach())
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InvalidArgument(
                f"verify: {name} is on the meta device and has no values; load the weights first"
            )
    return tensors


def _dense(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _check_plain(model: nn.Module, what: str) -> None:
    refuse_wrapped(model)
    if is_passportized(model):
        raise AlreadyPassportized(
            f"verify: {what} carries private branches; verify what was released, "
            "unpassportize(copy.deepcopy(model)) say"
        )


def _load_copy(opened: Suspect, model: nn.Module, place: str) -> None:
    twin = copy.deepcopy(model)
    own = twin.state_dict()
    match = find_counterparts(structure_of(own), structure_of(opened.tensors))
    found = {name: other for name, other in match.items() if other is not None}
    if len(found) < len(match) / 2:
        raise CheckpointError(
            f"{place}: only {len(found)} of the {len(match)} tensors of "
            f"{type(model).__name__} are in it; give a model of the right architecture as model="
        )
    with torch.no_grad():
        for name, other in found.items():
            own[name].copy_(opened.tensors[other])
    opened.module = twin
    opened.named = {other: name for name, other in found.items()}
    missing = [name for name, other in match.items() if other is None]
    if missing:
        opened.whole = False
        opened.notes.append(
            f"{place} lacks {len(missing)} tensors of {type(model).__name__}: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )


Weights = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
