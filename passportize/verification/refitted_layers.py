"""The released architecture in the form that both models can have: norms and layers multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from passportize.alignment.linear_maps import (
    LinearMap,
    as_convolution,
    dimensions_of,
    layer_of,
    stepping,
)
from passportize.alignment.stretches import Stretch
from passportize.tracing.linear_chains import is_frozen_norm

__all__ = ["RefittedLayers"]


class RefittedLayers:
    """The released architecture, without norms and layers that are parts of others here.

    Args:
        modules: Its modules, by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._merged: set[str] = set()
        self._alone: set[str] = set()
        self._biased: set[str] = set()
        self._joined: dict[str, nn.Module] = {}

    def note(self, stretch: Stretch, own: Mapping[str, LinearMap], joined: bool) -> None:
        """Take note of what a stretch does to the architecture.

        Args:
            stretch: Steps that are another number in the suspect, or others in kind.
            own: What each layer computes with the norms behind it.
            joined: Whether its layers become one.
        """
        norms = {step.name for step in stretch.released if step.norm}
        self._merged |= norms - set(own)
        self._alone |= norms & set(own)
        if joined:
            layers = [self._modules[step.name] for step in stretch.layers]
            first, *rest = (step.name for step in stretch.layers)
            self._joined[first] = layer_of(layers[stepping(layers)], own[first])
            self._merged |= set(rest)
        elif norms:
            self._biased |= {step.name for step in stretch.layers}

    def changed(self, model: nn.Module) -> nn.Module:
        """A model, changed in place."""
        for name in self._merged | self._alone:
            old = model.get_submodule(name)
            steps = list(old.children()) if is_frozen_norm(old) else []
            if name in self._alone:
                steps.insert(0, as_convolution(old))
            model.set_submodule(name, nn.Sequential(*steps))
        for name, layer in self._joined.items():
            model.set_submodule(name, nn.Sequential(layer))
        for name in self._biased:
            own: Any = model.get_submodule(name)
            if own.bias is None:
                own.bias = nn.Parameter(own.weight.new_zeros(len(own.weight)))
        return model

    def tensors(self, maps: Mapping[str, LinearMap]) -> dict[str, Tensor]:
        """Tensors of layers that compute some maps."""
        found = {}
        for name, step in maps.items():
            own: Any = self._joined.get(name, self._modules[name])
            place = name
            if name in self._alone or name in self._joined:
                place = f"{name}.0"
            kernel = (1,) * dimensions_of(own) if name in self._alone else own.weight.shape[2:]
            weight = step.weight
            if not step.kernel:
                weight = weight.reshape(*weight.shape, *kernel)
            found[f"{place}.weight"] = weight
            if own.bias is not None or name in self._biased:
                found[f"{place}.bias"] = step.shift
        return found
