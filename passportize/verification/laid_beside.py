"""A suspect and the released weights, tensor beside tensor and of one width."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.alignment.group_counts import in_released_groups
from passportize.alignment.head_counts import in_released_number
from passportize.alignment.head_widths import in_released_heads
from passportize.alignment.held_out import HeldOut
from passportize.alignment.narrowing import Narrowed
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.alignment.widening import Widened
from passportize.errors import PassportizeError, TracingError
from passportize.utils.resized import of_widths
from passportize.verification.counterparts import find_partners, structure_of
from passportize.verification.folded_norms import in_unfolded_form
from passportize.verification.of_one_width import of_one_width
from passportize.verification.other_depth import Refitted, in_released_layers

__all__ = ["LaidBeside", "lay_beside"]

NOT_OF_IT = "the suspect is no model of the released architecture"
HOW_TO_REFIT = "give what was released as a live model, released=model"


@dataclass(frozen=True, eq=False)
class LaidBeside:
    """Two models that can be aligned.

    Attributes:
        names: The released name of each tensor, by the suspect's; its own where it was not
            released, but is there in both.
        released: The owner's tensors, by the suspect's names.
        suspect: The suspect's, in the same shapes.
        tied: The channels of both.
        held_out: What an alignment is not to look at.
        narrowed: How the suspect was reduced, where it had more channels; None where it had not.
        widened: How it was filled up, where it had fewer; None likewise.
        resized: Whether heads of attention or groups of convolutions were more, or heads had
            another width.
        left_out: Released names of tensors of another size that no channels lead to (a classifier
            for other classes); in both models they are zeros here.
        refitted: How the suspect was put into the released layers, where it has others.
    """

    names: Mapping[str, str]
    released: Mapping[str, Tensor]
    suspect: Mapping[str, Tensor]
    tied: TiedChannels
    held_out: HeldOut
    narrowed: Narrowed | None = None
    left_out: tuple[str, ...] = ()
    refitted: Refitted | None = None
    widened: Widened | None = None
    resized: bool = False

    @property
    def present(self) -> tuple[int, ...] | None:
        """How many channels of each group are the suspect's own, where it has fewer."""
        return None if self.widened is None else self.widened.present


def lay_beside(
    module: nn.Module,
    released: Mapping[str, Tensor],
    example_inputs: Any = None,
    carrying: Collection[str] | None = None,
    folded: Mapping[str, str] | None = None,
    architecture: nn.Module | None = None,
) -> LaidBeside | str:
    """Find the counterparts of a suspect's tensors, and take out channels that only it has.

    Args:
        module: The suspect, live; it is only read.
        released: The owner's plain weights.
        example_inputs: As in :func:`passportize.plan`.
        carrying: Names of the released tensors that carry bits; by default all.
        folded: Norms that are folded in the suspect, and are to be in the released model too, with
            the layers before them.
        architecture: The released model, live, where there is one: a suspect with other layers is
            put into it.

    Returns:
        Both models, or in words why they cannot be compared.
    """
    suspect = _tensors_of(module)
    names = find_partners(structure_of(suspect), structure_of(released))
    whole = len(names) == len(suspect)
    refitted: Refitted | None = None
    wide: TiedChannels | None = None
    resized = False
    if not whole or (architecture is not None and _lacks(names, released)):
        if architecture is None:
            return f"{NOT_OF_IT}; if it has other layers, {HOW_TO_REFIT}"
        other = in_released_layers(module, architecture, example_inputs)
        if isinstance(other, Refitted):
            refitted, module, folded = other, other.module, None
            suspect = _tensors_of(module)
            names = {name: name for name in suspect}
        elif not whole:
            return f"{NOT_OF_IT}: {other}"
    elif architecture is not None and not folded and names:
        # What may move is read from code that the owner knows: a suspect's can have steps that do
        # nothing and hide what does.
        parts = _in_released_parts(module, suspect, names, architecture, example_inputs)
        known = _in_known_code(parts or suspect, names, architecture, example_inputs)
        if known is not None:
            module, suspect, wide = known
            names = {name: name for name in suspect}
            resized = parts is not None
    changed = refitted.released if refitted is not None else {}
    own = {
        name: changed[name].to(suspect[name].dtype) if name in changed else released[partner].cpu()
        for name, partner in names.items()
    }
    own = in_unfolded_form(module, own, folded or {})
    try:
        wide = wide or find_tied_channels(module, example_inputs)
    except TracingError as error:
        return str(error)
    ends = _open_ends(own, suspect, wide)
    left_out = tuple(names[name] for name in ends)
    own |= {name: zeros for name, (zeros, _) in ends.items()}
    suspect |= {name: zeros for name, (_, zeros) in ends.items()}
    shapes = {name: tensor.shape for name, tensor in own.items()}
    bound = {name for name, partner in names.items() if carrying is None or partner in carrying}
    if all(suspect[name].shape == shape for name, shape in shapes.items()):
        held_out = HeldOut(wide, shapes, bound)
        return LaidBeside(
            names, own, suspect, wide, held_out, None, left_out, refitted, None, resized
        )
    try:
        tied = find_tied_channels(of_widths(module, own), example_inputs)
    except (PassportizeError, RuntimeError, ValueError) as error:
        return f"{NOT_OF_IT}: {error}"
    held_out = HeldOut(tied, shapes, bound)
    fitted = of_one_width(module, own, suspect, tied, wide, held_out, example_inputs)
    if isinstance(fitted, str):
        return f"{NOT_OF_IT}: {fitted}"
    return LaidBeside(
        names,
        own,
        fitted.tensors,
        tied,
        held_out,
        fitted.narrowed,
        left_out,
        refitted,
        fitted.widened,
        resized,
    )


def _in_known_code(
    suspect: Mapping[str, Tensor],
    names: Mapping[str, str],
    architecture: nn.Module,
    example_inputs: Any,
) -> tuple[nn.Module, dict[str, Tensor], TiedChannels] | None:
    """The released architecture in the suspect's sizes, with the suspect's tensors by its names.

    None where tensors do not correspond, or the architecture does not take such sizes.
    """
    own = architecture.state_dict()
    renamed = {partner: suspect[name] for name, partner in names.items()}
    if renamed.keys() != own.keys() or any(renamed[key].dim() != own[key].dim() for key in own):
        return None
    try:
        same = all(renamed[key].shape == value.shape for key, value in own.items())
        module = architecture if same else of_widths(architecture, renamed)
        return module, renamed, find_tied_channels(module, example_inputs)
    except (PassportizeError, RuntimeError, ValueError):
        return None


def _in_released_parts(
    module: nn.Module,
    suspect: dict[str, Tensor],
    names: Mapping[str, str],
    architecture: nn.Module,
    example_inputs: Any,
) -> dict[str, Tensor] | None:
    """A suspect's tensors with as many groups and heads as were released; None if there are."""
    shapes = {name: tensor.shape for name, tensor in architecture.state_dict().items()}
    if all(suspect[name].shape == shapes.get(partner) for name, partner in names.items()):
        return None
    try:
        wide = find_tied_channels(module, example_inputs)
        tied = find_tied_channels(architecture, example_inputs)
    except TracingError:
        return None
    return (
        in_released_groups(suspect, wide, tied)
        or in_released_number(suspect, wide, tied)
        or in_released_heads(suspect, wide, shapes, tied, names)
    )


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _lacks(names: Mapping[str, str], released: Mapping[str, Tensor]) -> bool:
    """Whether a suspect lacks weights, factors or statistics that were released."""
    there = set(names.values())
    return any(name not in there for name, value in released.items() if value.is_floating_point())


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
