"""Values for the released layers from a suspect's, stretch by stretch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.alignment.linear_maps import map_of, product, side_by_side
from passportize.alignment.stretch_values import own_values, values_of
from passportize.alignment.stretches import Step, Stretch, step_of
from passportize.alignment.tied_channels import aliases_of
from passportize.tracing.linear_chains import Chain, Other, Unit
from passportize.utils.resized import of_widths
from passportize.verification.refitted_layers import RefittedLayers

__all__ = ["Filling", "ReadModel", "Refitted"]


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


class ReadModel:
    """One of both models, read.

    Args:
        model: The model, live; it is only read.

    Attributes:
        model: The same.
        modules: Its modules by name.
        state: Its tensors by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.state: dict[str, Tensor] = model.state_dict()

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


class Filling:
    """Values for the released architecture, and how they came about.

    Args:
        mine: The suspect.
        other: The released model.
        stretches: What stands for what in their chains.
        joined: Released layers that are to stay one with those behind them in their stretch.

    Attributes:
        pairs: First layers of pairs that were found from their product.
    """

    def __init__(
        self,
        mine: ReadModel,
        other: ReadModel,
        stretches: Sequence[Stretch],
        joined: frozenset[str],
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
        for name, first in aliases_of(self._other.model).items():
            if first in self._values:
                self._values.setdefault(name, self._values[first])
        for name, tensor in self._other.state.items():
            # What no forward pass meets has its name alone.
            same = self._mine.state.get(name)
            if same is not None and same.shape == tensor.shape:
                self._values.setdefault(name, same)
        module = self._module()
        if isinstance(module, str):
            return module
        told = "the suspect has the released layers, and other tensors in them"
        if self._layers[0]:
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
            elif key != "num_batches_tracked":
                return f"{name} of the suspect has no {key} as {wanted} has"
        return ""

    def _refit(self, stretch: Stretch) -> str:
        """Values for released steps from several others, or from others in kind."""
        names = [step.name for step in stretch.suspect]
        maps = [map_of(self._mine.modules[name]) for name in names]
        whole = side_by_side(maps) if stretch.beside else product(maps)
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
        if stretch.beside:
            return ""
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
