"""What is being verified: a live model, a state dict, or a file of whatever kind."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from passportize.errors import AlreadyPassportized, CheckpointError, InvalidArgument
from passportize.layers.computed import can_compute, effective_weight, is_in_files
from passportize.layers.model import is_passportized
from passportize.layers.wrappers import refuse_wrapped
from passportize.release.checkpoint import host_state_dict
from passportize.signature.matching import find_by_name
from passportize.suspects.reading import Opened, plain_layers, read_suspect
from passportize.utils.dense import dense
from passportize.utils.frozen import copy_to_run
from passportize.utils.resized import of_widths
from passportize.verification.counterparts import (
    find_counterparts,
    find_of_any_width,
    structure_of,
)
from passportize.verification.folded_norms import UnfoldedNorms, unfold_norms

__all__ = ["Suspect", "open_suspect"]

NO_MODULE = "weights alone cannot be run; give model= too"


@dataclass
class Suspect:
    """A suspect, opened.

    Attributes:
        tensors: Its weights by the names of the plain layers: with masks, adapters and the like
            put in.
        carriers: Where bits are looked for: these, and what looks like the tensors of a private
            branch, or a thief would hide weights by calling them so.
        module: A live model with these weights: a copy of the suspect or of ``model``; None
            where there is none.
        named: The module's name for each tensor of the file; empty where they are the same.
        whole: Whether the module has all of its weights from the suspect.
        notes: What the reader of a verdict should know.
        kept: Its tensors as they are kept; what a digest is of.
        no_module: Why there is no module.
        other_width: A copy of ``model`` with these weights, where it has all of them, some with
            another number of channels.
        folded: Norms of ``module`` that were folded into the layers before them, with these.
    """

    tensors: dict[str, Tensor]
    module: nn.Module | None
    named: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    notes: list[str] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    no_module: str = NO_MODULE
    carriers: dict[str, Tensor] = field(default_factory=dict)
    other_width: nn.Module | None = None
    folded: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.carriers = self.carriers or self.tensors


def open_suspect(suspect: Any, model: nn.Module | None, example_inputs: Any = None) -> Suspect:
    """Open a suspect; neither it nor ``model`` is changed.

    Args:
        suspect: A plain model, a state dict, the path of a file or folder of a kind that
            :func:`~passportize.suspects.read_suspect` knows, or what that function gave.
        model: For weights, a plain model of their architecture.
        example_inputs: What it is called with, as in :func:`passportize.plan`.

    Raises:
        InvalidArgument: Neither, or ``model`` beside a model.
        AlreadyPassportized: The suspect or ``model`` carries private branches.
        WrappedModel: One of them is inside DDP, torch.compile or the like.
        CheckpointError: The file cannot be read, or its weights do not fit ``model``.
        MissingExtra: The file's kind is read by a package that is not installed.
    """
    if isinstance(suspect, nn.Module):
        if model is not None:
            raise InvalidArgument(
                "verify: model= goes with a state dict or a file; the suspect is a model already"
            )
        _check_plain(suspect, "the suspect")
        kept = _tensors(host_state_dict(suspect))
        plain, notes = plain_layers(kept, suspect)
        plain.update(_computed(suspect, plain))
        opened = Suspect(plain, None, notes=notes, kept=kept)
        try:
            opened.module = copy_to_run(suspect)
        except InvalidArgument as error:
            opened.no_module = str(error)
        return opened
    place, found = _found(suspect)
    kept = _tensors(host_state_dict(found.kept))
    everything = _tensors(found.tensors)
    if not everything:
        raise InvalidArgument(f"verify: {place} holds no tensors by name")
    tensors = host_state_dict(everything)
    opened = Suspect(tensors, None, kept=kept, carriers=everything)
    if len(tensors) < len(everything):
        opened.notes.append(f"{place} has private branches too; only the plain part was looked at")
    if not found.common:
        opened.notes.append(f"{place} is {found.kind}")
    opened.notes.extend(f"{place}: {note}" for note in found.notes)
    if model is not None:
        if not isinstance(model, nn.Module):
            raise InvalidArgument(
                f"verify: model= must be a torch.nn.Module, not {type(model).__name__}"
            )
        _check_plain(model, "model=")
        _load_copy(opened, model, place, found, example_inputs)
    return opened


def _found(suspect: Any) -> tuple[str, Opened]:
    """A name of weights for messages, and what they are."""
    if isinstance(suspect, Opened):
        return suspect.path, suspect
    if isinstance(suspect, (str, os.PathLike)):
        return str(Path(suspect)), read_suspect(suspect)
    if isinstance(suspect, Mapping):
        kept = _tensors(suspect)
        plain, notes = plain_layers(kept)
        return "the state dict", Opened("", "a state dict", True, plain, kept, tuple(notes))
    raise InvalidArgument(
        "verify: the suspect must be a torch.nn.Module, a state dict or the path of a file of "
        f"weights, not {type(suspect).__name__}"
    )


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = _dense(name, value)
        elif isinstance(name, str) and isinstance(value, tuple):
            # Weight and bias of a quantised layer of torch.
            tensors.update(
                (f"{name}.{place}", _dense(name, part))
                for place, part in enumerate(value)
                if isinstance(part, Tensor)
            )
    return tensors


def _dense(name: str, tensor: Tensor) -> Tensor:
    try:
        return dense(tensor.detach())
    except ValueError as error:
        raise InvalidArgument(
            f"verify: {name} {error}; load the weights as dense tensors"
        ) from None


def _computed(model: nn.Module, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a live model computes by parametrizations of which its tensors alone do not tell."""
    found = {}
    for name, module in model.named_modules():
        for attribute in module.parametrizations if parametrize.is_parametrized(module) else ():
            place = f"{name}.{attribute}" if name else attribute
            if (
                place in plain
                and can_compute(module, attribute)
                and not is_in_files(module, attribute)
            ):
                found[place] = effective_weight(module, attribute).detach()
    return found


def _check_plain(model: nn.Module, what: str) -> None:
    refuse_wrapped(model)
    if is_passportized(model):
        raise AlreadyPassportized(
            f"verify: {what} carries private branches; verify what was released, "
            "unpassportize(copy.deepcopy(model)) say"
        )


def _load_copy(
    opened: Suspect, model: nn.Module, place: str, found: Opened, example_inputs: Any
) -> None:
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever its parts raise
        raise InvalidArgument(
            f"verify: model= cannot be copied ({type(error).__name__}: {error}); load the weights "
            "into it and give it as the suspect"
        ) from None
    own = twin.state_dict()
    # A model that is made of parts itself takes the parts.
    tensors, match = max(
        (
            (given, _counterparts(own, given, found.common))
            for given in (opened.tensors, opened.kept)
        ),
        key=lambda pair: sum(other is not None for other in pair[1].values()),
    )
    filled = {name: other for name, other in match.items() if other is not None}
    unfolded = UnfoldedNorms({}, {})
    if len(filled) < len(match):
        opened.other_width = _of_other_width(twin, opened.tensors)
        # By names alone: in its order the bias that took a norm in looks like the norm's.
        named = _counterparts(own, opened.tensors, common=False)
        unfolded = unfold_norms(twin, opened.tensors, named, example_inputs)
    if unfolded.tensors:
        tensors, match = opened.tensors, named
        filled = {name: other for name, other in match.items() if other is not None}
    if len(filled) + len(unfolded.tensors) < len(match) / 2:
        lacks = (
            f"only {len(filled)} of the {len(match)} tensors of {type(model).__name__} are in it"
        )
        if opened.other_width is not None:
            opened.no_module = f"{lacks} in its size, so it cannot be run as model="
            return
        if not found.common:
            # Its names or layers are those of another framework; bits are read without a model.
            opened.no_module = f"{lacks}, which is {found.kind}, so it cannot be run as model="
            return
        raise CheckpointError(f"{place}: {lacks}; give a model of the right architecture as model=")
    with torch.no_grad():
        for name, other in filled.items():
            # Sparse and quantised buffers are no weights, and stay as the model has them.
            if own[name].layout == torch.strided and not own[name].is_quantized:
                own[name].copy_(tensors[other])
        for name, value in unfolded.tensors.items():
            own[name].copy_(value)
    if unfolded.tensors:
        opened.folded = unfolded.layers
        opened.notes.append(f"{place} has norms folded into the layers before them")
    opened.module = twin
    opened.named = {other: name for name, other in filled.items()}
    missing = [
        name for name, other in match.items() if other is None and name not in unfolded.tensors
    ]
    if missing:
        opened.whole = False
        opened.notes.append(
            f"{place} lacks {len(missing)} tensors of {type(model).__name__}: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )


def _of_other_width(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """A copy of a model with all weights of a file, some of another size; None if it lacks some."""
    own = model.state_dict()
    match = find_of_any_width(structure_of(own), structure_of(tensors))
    # A file with twice as many tensors is of another model, whatever a few of them are called.
    if len(match) < len(own) or 2 * len(match) < len(tensors):
        return None
    # It shares parameters with a copy that nobody else has.
    wide = of_widths(model, {name: tensors[other] for name, other in match.items()})
    with torch.no_grad():
        for name, tensor in wide.state_dict().items():
            if tensor.layout == torch.strided and not tensor.is_quantized:
                tensor.copy_(tensors[match[name]])
    return wide


def _counterparts(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], common: bool
) -> dict[str, str | None]:
    if common:
        return find_counterparts(structure_of(own), structure_of(tensors))
    # In files of other frameworks order says nothing.
    there = find_by_name(dict(structure_of(own)), dict(structure_of(tensors)))
    return {name: there.get(name) for name in own}


Weights = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
