"""A suspect with more or fewer layers than were released, put into the released architecture.

A thief can cut a linear layer in two, make a norm a convolution, put in layers that do nothing and
multiply layers that follow each other: the network computes what it did, and its tensors are those
of no architecture. Both models are read as sequences of chains (:mod:`passportize.tracing.
linear_chains`), what each chain of the suspect computes is multiplied out, and the released layers
get values that compute the same. What only the product of several layers says is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from passportize.alignment.held_out import HeldOut
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.stretches import Stretch, cut_in_stretches
from passportize.alignment.tied_channels import find_tied_channels
from passportize.surgery.norms import find_norms
from passportize.tracing.linear_chains import Chain, Other, Unit, units_of
from passportize.tracing.trace import trace_model
from passportize.verification.filling import Filling, ReadModel, Refitted

__all__ = ["Refitted", "in_released_layers"]


@torch.no_grad()
def in_released_layers(
    suspect: nn.Module, architecture: nn.Module, example_inputs: Any = None
) -> Refitted | str:
    """Put a suspect into the layers of the released model.

    Args:
        suspect: The suspect, live; it is only read.
        architecture: The released model, live; it is only read.
        example_inputs: As in :func:`passportize.plan`; both have to take them.

    Returns:
        The suspect, or in words why it has another structure.
    """
    recorded = []
    for model in (suspect, architecture):
        norms = [norm.name for norm in find_norms(model)]
        trace = trace_model(model, example_inputs, norms=norms, training=False)
        if trace.method != "fx-meta":
            return f"{type(model).__name__} cannot be read: {trace.reason}"
        recorded.append(trace.recordings[0].graph)
    mine, other = (ReadModel(model) for model in (suspect, architecture))
    wanted = units_of(architecture, recorded[1])
    reason = ""
    for any_width in (False, True):
        for shared in (False, True):
            found = units_of(suspect, recorded[0], shared)
            units = [unit for unit in map(mine.without_nothing, found) if unit is not None]
            matched = _matched(mine, other, units, wanted, any_width)
            if not isinstance(matched, str):
                return _filled(mine, other, *matched, example_inputs)
            reason = reason or matched
    return reason


def _matched(
    mine: ReadModel,
    other: ReadModel,
    units: Sequence[Unit],
    wanted: Sequence[Unit],
    any_width: bool,
) -> tuple[list[Stretch], list[tuple[Other, Other]]] | str:
    """What stands for what, unit by unit in the order of both forward passes."""
    stretches: list[Stretch] = []
    others: list[tuple[Other, Other]] = []
    for unit, partner in zip(units, wanted, strict=False):
        if isinstance(unit, Chain) and isinstance(partner, Chain):
            found = cut_in_stretches(mine.steps(unit), other.steps(partner), any_width)
            if found is not None:
                stretches += found[1]
                continue
        if isinstance(unit, Other) and isinstance(partner, Other):
            shapes = [
                [tuple(side.state[name].shape) for name in one.tensors if name in side.state]
                for side, one in ((mine, unit), (other, partner))
            ]
            ranks = [[len(shape) for shape in some] for some in shapes]
            norms = bool(unit.norm) and bool(partner.norm) and not shapes[0]
            if shapes[0] == shapes[1] or (any_width and ranks[0] == ranks[1]) or norms:
                others.append((unit, partner))
                continue
        return f"{_name(unit)} of the suspect stands where {_name(partner)} was released"
    if len(units) != len(wanted):
        longer, whose = (units, "the suspect") if len(units) > len(wanted) else (wanted, "released")
        return f"nothing corresponds to {_name(longer[min(len(units), len(wanted))])} of {whose}"
    return stretches, others


def _name(unit: Unit) -> str:
    if isinstance(unit, Chain):
        return unit.modules[0]
    return unit.norm or unit.tensors[0]


def _filled(
    mine: ReadModel,
    other: ReadModel,
    stretches: Sequence[Stretch],
    others: Sequence[tuple[Other, Other]],
    example_inputs: Any,
) -> Refitted | str:
    """The released architecture with the suspect's values, products parted where that can be."""
    filling = Filling(mine, other, stretches, frozenset())
    found = filling.filled(others)
    if isinstance(found, str) or not filling.pairs:
        return found
    # Two layers are known from their product up to a matrix on the channels in between, which an
    # alignment finds where any matrix may lie on them and the weights have more to say.
    tied = find_tied_channels(found.module, example_inputs)
    held_out = HeldOut(
        tied, {name: value.shape for name, value in found.module.state_dict().items()}
    )
    mixed = {
        tied.axes[side.axis].tensor
        for space in tied.spaces
        if space.kind is MatrixKind.LINEAR and space.blocks == 1
        for side in space.sides
        if side.writes
    }
    joined = frozenset(
        name
        for name in filling.pairs
        if f"{name}.weight" not in mixed or not held_out.readable(f"{name}.weight")
    )
    return Filling(mine, other, stretches, joined).filled(others) if joined else found
