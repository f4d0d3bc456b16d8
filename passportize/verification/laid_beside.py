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
from passportize.verification.folded_norms import in_unfolded_form

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
        left_out: Released names of tensors of another size that no channels lead to (a classifier
            for other classes); in both models they are zeros here.
    """

    names: Mapping[str, str]
    released: Mapping[str, Tensor]
    suspect: Mapping[str, Tensor]
    tied: TiedChannels
    held_out: HeldOut
    narrowed: Narrowed | None = None
    left_out: tuple[str, ...] = ()


def lay_beside(
    module: nn.Module,
    released: Mapping[str, Tensor],
    example_inputs: Any = None,
    carrying: Collection[str] | None = None,
    folded: Mapping[str, str] | None = None,
) -> LaidBeside | str:
    """Find the counterparts of a suspect's tensors, and take out channels that only it has.

    Args:
        module: The suspect, live; it is only read.
        released: The owner's plain weights.
        example_inputs: As in :func:`passportize.plan`.
        carrying: Names of the released tensors that carry bits; by default all.
        folded: Norms that are folded in the suspect, and are to be in the released model too, with
            the layers before them.

    Returns:
        Both models, or in words why they cannot be compared.
    """
    suspect = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    found = find_counterparts(structure_of(suspect), structure_of(released))
    names = {name: partner for name, partner in found.items() if partner}
    if len(names) < len(found):
        names = find_of_any_width(structure_of(suspect), structure_of(released))
    if len(names) < len(found):
        return NOT_OF_IT
    own = {name: released[partner].cpu() for name, partner in names.items()}
    own = in_unfolded_form(module, own, folded or {})
    try:
        wide = find_tied_channels(module, example_inputs)
    except TracingError as error:
        return str(error)
    ends = _open_ends(own, suspect, wide)
    own |= {name: zeros for name, (zeros, _) in ends.items()}
    suspect |= {name: zeros for name, (_, zeros) in ends.items()}
    left_out = tuple(names[name] for name in ends)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    bound = None
    if carrying is not None:
        bound = {name for name, partner in names.items() if partner in carrying}
    if all(suspect[name].shape == shape for name, shape in shapes.items()):
        held_out = HeldOut(wide, shapes, bound)
        return LaidBeside(names, own, suspect, wide, held_out, left_out=left_out)
    try:
        tied = find_tied_channels(of_widths(module, own), example_inputs)
    except (PassportizeError, RuntimeError, ValueError) as error:
        return f"{NOT_OF_IT}: {error}"
    held_out = HeldOut(tied, shapes, bound)
    narrowed = narrow(own, suspect, tied, wide, held_out)
    if isinstance(narrowed, str):
        return f"{NOT_OF_IT}: {narrowed}"
    return LaidBeside(names, own, narrowed.tensors, tied, held_out, narrowed, left_out)


def _open_ends(
    released: Mapping[str, Tensor], suspect: Mapping[str, Tensor], tied: TiedChannels
) -> dict[str, tuple[Tensor, Tensor]]:
    """Zeros for tensors that have another size along a dimension that counts no channels.

    In the shape that both models have there: the suspect's along such dimensions.
    """
    counted = {
        (tied.axes[number].tensor, tied.axes[number].dim)
        for group in tied.groups
        for number, _ in group.places
    } | {
        (tied.axes[side.axis].tensor, tied.axes[side.axis].dim)
        for space in tied.spaces
        for side in space.sides
    }
    found = {}
    for name, own in released.items():
        other = suspect[name].shape
        free = [
            dim
            for dim, (size, wanted) in enumerate(zip(own.shape, other, strict=True))
            if size != wanted and (name, dim) not in counted
        ]
        if free:
            shape = [other[dim] if dim in free else size for dim, size in enumerate(own.shape)]
            found[name] = own.new_zeros(shape), suspect[name].new_zeros(other)
    return found
