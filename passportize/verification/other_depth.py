"""A suspect with more or fewer layers than were released, put into the released architecture.

A thief can cut a linear layer in two, make a norm a convolution, put in layers that do nothing and
multiply layers that follow each other: the network computes what it did, and its tensors are those
of no architecture. Both models are read as sequences of chains (:mod:`passportize.tracing.
linear_chains`), what each chain of the suspect computes is multiplied out, and the released layers
get values that compute the same. What only the product of several layers says is left open.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.held_out import HeldOut
from passportize.alignment.linear_maps import (
    map_of,
    product,
)
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.stretch_values import own_values, values_of
from passportize.alignment.stretches import Step, Stretch, cut_in_stretches, step_of
from passportize.alignment.tied_channels import find_tied_channels
from passportize.surgery.norms import find_norms
from passportize.tracing.linear_chains import Chain, Other, Unit, units_of
from passportize.tracing.trace import trace_model
from passportize.utils.resized import of_widths
from passportize.verification.refitted_layers import RefittedLayers

__all__ = ["Refitted", "in_released_layers"]

_UNREAD_NUMBERS = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Refitted:
    """A suspect in the released architecture.

    Attributes:
        module: The released architecture with the suspect's values.
        released: Tensors of the released model that are to be in another form, by name.
        unread: Names of released weights of which only a product is known; it stands in the place
            of one that was not released.
        told: What was done, in words.
    """

    module: nn.Module
    released: Mapping[str, Tensor]
    unread: tuple[str, ...]
    told: str


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
    mine, other = (_Side(model) for model in (suspect, architecture))
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


class _Side:
    """One of both models."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.state: dict[str, Tensor] = model.state_dict()
        self.first: dict[str, str] = {}
        known: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.first[name] = known.setdefault(id(parameter), name)

    def steps(self, chain: Chain) -> list[Step]:
        """The steps of a chain."""
        return [step_of(name, self.modules[name]) for name in chain.modules]

    def without_nothing(self, unit: Unit) -> Unit | None:
        """A unit without layers that do nothing; None if nothing is left."""
        if isinstance(unit, Other):
            return unit
        steps = self.steps(unit)
        kept = tuple(
            step.name
            for step in steps
            if step.norm
            or step.kernel
            or step.inputs != step.outputs
            or not map_of(self.modules[step.name]).is_identity()
        )
        if len(kept) > 1 and all(step.inputs == step.outputs and not step.kernel for step in steps):
            whole = product([map_of(self.modules[name]) for name in kept])
            if whole is not None and whole.is_identity():
                return None
        return Chain(kept) if kept else None


def _matched(
    mine: _Side, other: _Side, units: Sequence[Unit], wanted: Sequence[Unit], any_width: bool
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
    mine: _Side,
    other: _Side,
    stretches: Sequence[Stretch],
    others: Sequence[tuple[Other, Other]],
    example_inputs: Any,
) -> Refitted | str:
    """The released architecture with the suspect's values, products parted where that can be."""
    filling = _Filling(mine, other, stretches, frozenset())
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
    return _Filling(mine, other, stretches, joined).filled(others) if joined else found


class _Filling:
    """Values for the released architecture, and how they came about.

    Attributes:
        pairs: First layers of pairs that were found from their product.
    """

    def __init__(
        self, mine: _Side, other: _Side, stretches: Sequence[Stretch], joined: frozenset[str]
    ) -> None:
        self._mine, self._other, self._stretches, self._joined = mine, other, stretches, joined
        self._values: dict[str, Tensor] = {}
        self._released: dict[str, Tensor] = {}
        self.pairs: list[str] = []
        self._unread: list[str] = []
        self._architecture = RefittedLayers(other.modules)
        self._layers = [0, 0]

    def filled(self, others: Sequence[tuple[Other, Other]]) -> Refitted | str:
        """The released architecture with the suspect's values."""
        for unit, partner in others:
            for name, wanted in zip(unit.tensors, partner.tensors, strict=False):
                if name in self._mine.state:
                    self._values[wanted] = self._mine.state[name]
            if not unit.tensors:
                self._plain_factors(partner)
        for stretch in self._stretches:
            refused = self._copy(stretch) if stretch.same else self._refit(stretch)
            if refused:
                return refused
        for name, first in self._other.first.items():
            if first in self._values:
                self._values.setdefault(name, self._values[first])
        module = self._module()
        if isinstance(module, str):
            return module
        told = (
            f"the suspect has other layers: {self._layers[0]} of its layers and norms were "
            f"multiplied out to {self._layers[1]} that were released"
        )
        return Refitted(module, self._released, tuple(self._unread), told)

    def _plain_factors(self, norm: Other) -> None:
        """Factors of a norm that has none in the suspect: what reads it has them."""
        for name in norm.tensors:
            ones = torch.ones_like(self._other.state[name])
            if name.endswith("weight"):
                self._values[name] = ones
            elif name.endswith("bias"):
                self._values[name] = ones * 0

    def _copy(self, stretch: Stretch) -> str:
        """The tensors of one step that is in both models."""
        name, wanted = stretch.suspect[0].name, stretch.released[0].name
        whole = map_of(self._mine.modules[name])
        for key, tensor in self._other.modules[wanted].state_dict().items():
            found = self._mine.state.get(f"{name}.{key}")
            if found is not None:
                if found.dim() != tensor.dim():
                    found = found.reshape(*found.shape[:2], *[1] * (tensor.dim() - 2))
                self._values[f"{wanted}.{key}"] = found
            elif key == "bias":
                self._values[f"{wanted}.{key}"] = torch.zeros_like(whole.shift)
            elif key != _UNREAD_NUMBERS:
                return f"{name} of the suspect has no {key} as {wanted} has"
        return ""

    def _refit(self, stretch: Stretch) -> str:
        """Values for released steps from several others, or from others in kind."""
        names = [step.name for step in stretch.suspect]
        whole = product([map_of(self._mine.modules[name]) for name in names])
        joined = bool(stretch.layers) and stretch.layers[0].name in self._joined
        found = values_of(stretch, whole, joined) if whole is not None else None
        if found is not None and not found:
            joined = True
            found = values_of(stretch, whole, joined) if whole is not None else None
        if found is None:
            return f"{', '.join(names)} of the suspect cannot be {stretch.released[0].name}"
        self._layers[0] += len(names)
        self._layers[1] += len(stretch.released)
        own = own_values(stretch, self._other.modules, joined)
        self._architecture.note(stretch, own, joined)
        self._values |= self._architecture.tensors(found)
        if len(stretch.released) > 1 or stretch.released[0].norm:
            self._released |= self._architecture.tensors(own)
        if joined:
            self._unread += [f"{step.name}.weight" for step in stretch.layers]
        elif len(stretch.layers) > 1 and not any(step.separate for step in stretch.layers):
            self.pairs.append(stretch.layers[0].name)
        return ""

    def _module(self) -> nn.Module | str:
        """The architecture with all values."""
        try:
            twin = self._architecture.changed(copy.deepcopy(self._other.model).cpu())
        except Exception as error:  # whatever its parts raise
            return f"the released model cannot be changed ({type(error).__name__}: {error})"
        state = twin.state_dict()
        values = {name: value.detach().cpu() for name, value in self._values.items()}
        filled = of_widths(twin, {name: values[name] for name in state if name in values})
        for name, tensor in filled.state_dict().items():
            if name in values:
                tensor.copy_(values[name])
            elif tensor.is_floating_point():
                return f"nothing in the suspect says what {name} is"
        return filled
