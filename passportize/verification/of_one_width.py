"""A suspect in the released widths: of channels too many some go, those it lacks are nothing.

Where it has more in one place and fewer in another it is filled up first, so that only channels too
many are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.copies import without_copies
from passportize.alignment.held_out import HeldOut
from passportize.alignment.narrowing import Narrowed, narrow
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.alignment.widening import Widened, widen
from passportize.alignment.widths import OTHER_TIES
from passportize.errors import PassportizeError
from passportize.utils.resized import of_widths

__all__ = ["OneWidth", "of_one_width"]


@dataclass(frozen=True, eq=False)
class OneWidth:
    """A suspect in the released widths.

    Attributes:
        tensors: Its tensors by name.
        narrowed: How it was reduced; None where it has no more channels anywhere.
        widened: How it was filled up; None where it has no fewer.
    """

    tensors: Mapping[str, Tensor]
    narrowed: Narrowed | None = None
    widened: Widened | None = None


def of_one_width(
    module: nn.Module,
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    other: TiedChannels,
    held_out: HeldOut,
    example_inputs: Any = None,
) -> OneWidth | str:
    """Give a suspect the released widths.

    Args:
        module: The suspect, live; it is only read.
        released: The owner's plain weights, by the suspect's first names.
        suspect: The suspect's tensors; left as they are.
        tied: The channels of the released model.
        other: Those of the suspect.
        held_out: What is not looked at in the released shapes.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The suspect, or in words why that cannot be done.
    """
    if len(tied.groups) != len(other.groups):
        return OTHER_TIES
    plain: OneWidth | None = None
    if not _fewer(tied, other):
        narrowed = narrow(released, suspect, tied, other, held_out)
        if isinstance(narrowed, str):
            return narrowed
        plain = OneWidth(narrowed.tensors, narrowed)
        if not narrowed.chosen:
            return plain
    # Dummies can stand in the places of channels that are missing.
    single = without_copies(suspect, other, range(len(other.groups)))
    copies = 0
    if single is not None:
        suspect, copies = single
        module = of_widths(module, suspect)
        other = find_tied_channels(module, example_inputs)
    if plain is not None and (_fewer(other, tied) or not _fewer(tied, other)):
        return plain
    if not _fewer(other, tied):
        widened = widen(released, suspect, tied, other)
        if isinstance(widened, str):
            return widened
        return OneWidth(widened.tensors, None, replace(widened, copies=copies))
    large = _filled_shapes(suspect, tied, other)
    try:
        both = find_tied_channels(of_widths(module, large), example_inputs)
    except (PassportizeError, RuntimeError, ValueError) as error:
        return str(error)
    widened = widen(large, suspect, both, other)
    if isinstance(widened, str):
        return widened
    reduced = narrow(released, widened.tensors, tied, both, held_out, widened.present)
    if isinstance(reduced, str):
        return reduced
    pairs = zip(tied.groups, other.groups, strict=True)
    present = tuple(min(own.size, its.size) for own, its in pairs)
    return OneWidth(reduced.tensors, reduced, replace(widened, present=present, copies=copies))


def _fewer(released: TiedChannels, suspect: TiedChannels) -> bool:
    """Whether a model has fewer channels than another in some group."""
    pairs = zip(released.groups, suspect.groups, strict=True)
    return any(its.size < own.size for own, its in pairs)


def _filled_shapes(
    suspect: Mapping[str, Tensor], tied: TiedChannels, other: TiedChannels
) -> dict[str, Tensor]:
    """Zeros in the shapes of a suspect that has at least as many channels everywhere."""
    more: dict[tuple[str, int], int] = defaultdict(int)
    for own, its in zip(tied.groups, other.groups, strict=True):
        for number, places in its.places:
            axis = other.axes[number]
            if axis.moves and own.size > its.size:
                more[axis.tensor, axis.dim] += (own.size - its.size) * places.shape[1]
    found = {}
    for name, tensor in suspect.items():
        shape = [size + more[name, dim] for dim, size in enumerate(tensor.shape)]
        found[name] = torch.zeros(shape, dtype=tensor.dtype)
    return found
