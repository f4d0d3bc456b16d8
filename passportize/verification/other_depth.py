"""A suspect with more or fewer layers than were released, put into the released architecture.

A thief can cut a linear layer in two, make a norm a convolution, put in layers that do nothing and
multiply layers that follow each other: the network computes what it did, and its tensors are those
of no architecture. Both models are read as sequences of chains (:mod:`passportize.tracing.
linear_chains`), what each chain of the suspect computes is multiplied out, and the released layers
get values that compute the same. What only the product of several layers says is left open.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from passportize.alignment.held_out import HeldOut
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.stretches import Stretch, cut_in_stretches
from passportize.alignment.tied_channels import find_tied_channels
from passportize.surgery.norms import find_norms
from passportize.tracing.example_inputs import given_or_random
from passportize.tracing.idle_steps import LITTLE, NOTHING, without_idle_steps
from passportize.tracing.linear_chains import Chain, Other, Unit, units_of
from passportize.tracing.trace import trace_model
from passportize.tracing.unchanged import ROUNDING, FunctionCheck
from passportize.verification.filling import Filling, ReadModel, Refitted

__all__ = ["Refitted", "in_released_layers"]

_FURTHEST = 8
"""Units among which layers that lie side by side are looked for."""

_MOST_BESIDE = 3
"""Layers side by side of which every order is tried: queries, keys and values."""


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
    recorded: list[fx.Graph] = []
    for model in (suspect, architecture):
        norms = [norm.name for norm in find_norms(model)]
        trace = trace_model(model, example_inputs, norms=norms, training=False)
        if trace.method != "fx-meta":
            return f"{type(model).__name__} cannot be read: {trace.reason}"
        recorded.append(trace.recordings[0].graph)
    mine, other = (ReadModel(model) for model in (suspect, architecture))
    graphs: Iterator[tuple[fx.Graph, ...]] = itertools.chain(
        [tuple(recorded)], _without_idle((mine, other), recorded, example_inputs)
    )
    reason = ""
    for own, its in graphs:
        wanted = units_of(architecture, its)
        for any_width, shared in itertools.product((False, True), repeat=2):
            found = units_of(suspect, own, shared)
            units = [unit for unit in map(mine.without_nothing, found) if unit is not None]
            matched = _matched(mine, other, units, wanted, any_width)
            if not isinstance(matched, str):
                stretches, others = matched
                fill = functools.partial(
                    _filled, mine, other, others=others, example_inputs=example_inputs
                )
                return _in_order(fill, stretches, suspect, example_inputs)
            reason = reason or matched
    return reason


def _without_idle(
    models: Sequence[ReadModel], recorded: Sequence[fx.Graph], example_inputs: Any
) -> Iterator[tuple[fx.Graph, ...]]:
    """Both graphs without steps that do nothing, whichever has them; they part chains.

    And then the suspect's without layers that do little: in the released model these may be real.
    """

    def without(at: int, of_layers: float) -> fx.Graph:
        inputs = given_or_random(models[at].model, example_inputs)
        return without_idle_steps(models[at].model, recorded[at], inputs, of_layers)

    released = without(1, NOTHING)
    for little in (NOTHING, LITTLE):
        yield without(0, little), released


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
    left, right = list(units), list(wanted)
    while left and right:
        unit, partner = left[0], right[0]
        if isinstance(unit, Chain) and isinstance(partner, Chain):
            found = cut_in_stretches(mine.steps(unit), other.steps(partner), any_width)
            aside = (
                None if found is not None and not found[0] else _beside(mine, other, left, right)
            )
            if aside is not None:
                stretches.append(aside)
                continue
            if found is not None:
                stretches += found[1]
                del left[0], right[0]
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
                del left[0], right[0]
                continue
        return f"{_name(unit)} of the suspect stands where {_name(partner)} was released"
    if left or right:
        whose = "the suspect" if left else "released"
        return f"nothing corresponds to {_name((left or right)[0])} of {whose}"
    return stretches, others


def _beside(
    mine: ReadModel, other: ReadModel, left: list[Unit], right: list[Unit]
) -> Stretch | None:
    """Layers of the one model that lie side by side in the other, taken out of both lists.

    They read as many channels and together make as many; whether it is the same that they read,
    the comparison of what both compute has to show.
    """
    for several, one, of_several, of_one in (
        (left, right, mine, other),
        (right, left, other, mine),
    ):
        whole = of_one.steps(one[0]) if isinstance(one[0], Chain) else []
        if len(whole) != 1 or whole[0].norm or whole[0].groups > 1:
            continue
        taken, made = [], 0
        for unit in several[:_FURTHEST]:
            steps = of_several.steps(unit) if isinstance(unit, Chain) else []
            if len(steps) != 1 or steps[0].norm or steps[0].groups > 1:
                continue
            if (steps[0].inputs, steps[0].kernel) != (whole[0].inputs, whole[0].kernel):
                continue
            taken.append((unit, steps[0]))
            made += steps[0].outputs
            if made >= whole[0].outputs:
                break
        if len(taken) < 2 or made != whole[0].outputs or taken[0][0] is not several[0]:
            continue
        for unit, _ in taken:
            several.remove(unit)
        del one[0]
        parts = tuple(step for _, step in taken)
        alone = (whole[0],)
        if several is left:
            return Stretch(parts, alone, beside=True)
        return Stretch(alone, parts, beside=True)
    return None


def _in_order(
    fill: Callable[[Sequence[Stretch]], Refitted | str],
    stretches: Sequence[Stretch],
    suspect: nn.Module,
    example_inputs: Any,
) -> Refitted | str:
    """Layers that lie side by side in the order in which the network computes what it did."""
    counts = [
        len(stretch.suspect) * len(stretch.released) for stretch in stretches if stretch.beside
    ]
    if not counts or max(counts) > _MOST_BESIDE:
        return fill(stretches)
    check = FunctionCheck(suspect, example_inputs)
    best: tuple[float, Refitted | str] | None = None
    for order in itertools.permutations(range(max(counts))):
        found = fill([_ordered(stretch, order) for stretch in stretches])
        apart = math.inf if isinstance(found, str) else check.difference(found.module)
        if best is None or apart < best[0]:
            best = apart, found
        if apart <= ROUNDING:
            break
    assert best is not None
    return best[1]


def _ordered(stretch: Stretch, order: Sequence[int]) -> Stretch:
    """A stretch with its parts in another order."""
    if not stretch.beside:
        return stretch
    suspect, released = (
        tuple(side[at] for at in order if at < len(side))
        for side in (stretch.suspect, stretch.released)
    )
    return replace(stretch, suspect=suspect, released=released)


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
