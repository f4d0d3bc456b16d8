"""A suspect and the released weights, tensor beside tensor and of one width."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.alignment.held_out import HeldOut
from passportize.alignment.narrowing import Narrowed, narrow
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.errors import PassportizeError, TracingError
from passportize.utils.resized import of_widths
from passportize.verification.counterparts import (
    find_counterparts,
    find_of_any_width,
    structure_of,
)

__all__ = ["LaidBeside", "lay_beside"]

NOT_OF_IT = "the suspect is no model of the released architecture"


@dataclass(frozen=True, eq=False)
class LaidBeside:
    """Two models that can be aligned.

    Attributes:
        names: The released name of each tensor, by the suspect's.
        released: The owner's tensors, by the suspect's names.
        suspect: The suspect's, in the same shapes.
        tied: The channels of both.
        held_out: What an alignment is not to look at.
        narrowed: How the suspect was reduced, where it had more channels; None where it had not.
    """

    names: Mapping[str, str]
    released: Mapping[str, Tensor]
    suspect: Mapping[str, Tensor]
    tied: TiedChannels
    held_out: HeldOut
    narrowed: Narrowed | None = None


def lay_beside(
    module: nn.Module,
    released: Mapping[str, Tensor],
    example_inputs: Any = None,
    carrying: Collection[str] | None = None,
) -> LaidBeside | str:
    """Find the counterparts of a suspect's tensors, and take out channels that only it has.

    Args:
        module: The suspect, live; it is only read.
        released: The owner's plain weights.
        example_inputs: As in :func:`passportize.plan`.
        carrying: Names of the released tensors that carry bits; by default all.

    Returns:
        Both models, or in words why they cannot be compared.
    """
    suspect = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    found = find_counterparts(structure_of(suspect), structure_of(released))
    names = {name: partner for name, partner in found.items() if partner}
    wider = len(names) < len(found)
    if wider:
        names = find_of_any_width(structure_of(suspect), structure_of(released))
    if len(names) < len(found):
        return NOT_OF_IT
    own = {name: released[partner].cpu() for name, partner in names.items()}
    shapes = {name: tensor.shape for name, tensor in own.items()}
    bound = None
    if carrying is not None:
        bound = {name for name, partner in names.items() if partner in carrying}
    try:
        wide = find_tied_channels(module, example_inputs)
    except TracingError as error:
        return str(error)
    if not wider:
        return LaidBeside(names, own, suspect, wide, HeldOut(wide, shapes, bound))
    try:
        tied = find_tied_channels(of_widths(module, own), example_inputs)
    except (PassportizeError, RuntimeError, ValueError) as error:
        return f"{NOT_OF_IT}: {error}"
    held_out = HeldOut(tied, shapes, bound)
    narrowed = narrow(own, suspect, tied, wide, held_out)
    if isinstance(narrowed, str):
        return f"{NOT_OF_IT}: {narrowed}"
    return LaidBeside(names, own, narrowed.tensors, tied, held_out, narrowed)
