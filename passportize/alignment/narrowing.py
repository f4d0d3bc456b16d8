"""A suspect with more channels than the released model, reduced to as many: dummies undone.

A thief can add channels that change no output ("Rethinking White-Box Watermarks on Deep Learning
Models under Neural Structural Obfuscation", USENIX Security 2023): some that nothing reads, some
that cancel each other, and a channel as several. They are taken out again, group by group, never
below the width that the released model has there:

1. Without the released weights: clones are merged, what reads the one then reads the other as well;
   and what is not read goes. From the last group to the first, because what only dummies read is
   one, and from the first to the last, because the rows of clones can differ in what comes from
   dummies; until nothing changes, first for what is exact, then for what rounding has blurred.
   Where more than the excess would go, none of them does. Where any matrix may lie on channels,
   what the network sees of them keeps its rank (:mod:`passportize.alignment.truncation`).
2. Where noise or training lie on top, a group still has too many. The suspect is aligned as it is,
   the best assignment leaving as many channels over as there are too many; what is left over is
   merged where it resembles a channel that stays, else dropped.

The second step looks at the entries that every alignment looks at and at no others, so which
channels stay is, like their order, no function of what is read afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from passportize.alignment.held_out import HeldOut
from passportize.alignment.reduction import Reduction
from passportize.alignment.tied_channels import TiedChannels
from passportize.alignment.widths import OTHER_TIES, Widths

__all__ = ["Narrowed", "narrow"]

_TOLERANCES = (1e-3, 0.03)
"""Rest of a channel, in units of its size, up to which it is nothing: exact, and rounded."""


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A suspect as wide as the released model.

    Attributes:
        tensors: Its tensors by name.
        merged: Channels that were merged into others.
        dropped: Channels that were left out.
        chosen: How many of both only the released weights could choose.
    """

    tensors: Mapping[str, Tensor]
    merged: int
    dropped: int
    chosen: int


def narrow(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    wide: TiedChannels,
    held_out: HeldOut,
    present: Sequence[int] | None = None,
) -> Narrowed | str:
    """Take the channels out of a suspect that the released model does not have.

    Args:
        released: The owner's plain weights, by the suspect's first names.
        suspect: The suspect's tensors; left as they are.
        tied: The channels of the released model.
        wide: Those of the suspect.
        held_out: What is not looked at in the released shapes.
        present: How many channels of each group are the suspect's own, where it was filled up; by
            default all.

    Returns:
        The suspect, or in words why it cannot be reduced.
    """
    widths = Widths(wide, tied)
    if not widths.fits:
        return f"{OTHER_TIES}, or are fewer"
    shapes = {name: released[name].shape for name in suspect}
    try:
        for name, tensor in suspect.items():
            widths.source(name, tensor.shape, shapes[name], widths.first())
    except ValueError as error:
        return f"{error} has another size in a place where channels cannot be told apart"
    search = Reduction(released, suspect, wide, widths)
    if search.hopeless:
        return search.hopeless
    for tolerance in _TOLERANCES:
        search.settle(tolerance)
    chosen = search.excess()
    if chosen:
        search.choose(held_out, present)
    kept = search.kept()
    tensors = {
        name: widths.narrowed(name, tensor, shapes[name], kept)
        for name, tensor in search.tensors.items()
    }
    for alias, first in wide.aliases.items():
        if alias in tensors and first in tensors:
            tensors[alias] = tensors[first]
    return Narrowed(tensors, search.merged, search.dropped, chosen)
