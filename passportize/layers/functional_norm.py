"""Norms that are no modules: ``F.layer_norm(x, shape, self.scale, self.shift)`` in a forward.

The graph says which calls normalise with parameters of the model. For each a stand-in module takes
its place while the model is passportized: the module in whose forward the call is gets a class
whose forward hands such calls to the stand-ins. From there on a stand-in is a norm like any other.
The stand-in owns nothing, so the host's keys stay; taking it out restores the model exactly.

A part of a forward that activation checkpointing repeats on its own is repeated without stand-ins;
checkpoint whole modules instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from passportize.layers.derived import MadeOnDemand
from passportize.tracing.operations import Kind, steps

__all__ = ["FUNCTIONS", "Exposed", "FunctionalNorm", "Place", "arguments_of"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: getattr(F, name) for name in sorted(steps(Kind.NORM))
}


class Place:
    """A tensor by the module that owns it and its name there, without owning the module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name

    def get(self) -> Tensor:
        """The tensor that is there now."""
        tensor: Tensor = getattr(self.module, self.name)
        return tensor


class FunctionalNorm(nn.Module):
    """Stands in for one functional norm in the forward of the module that it is registered in.

    Args:
        function: Name of the function, a key of :data:`FUNCTIONS`.
        places: Where its ``weight`` and, if they are tensors of the model, its ``bias`` and
            running statistics are.
    """

    def __init__(self, function: str, places: Mapping[str, Place]) -> None:
        super().__init__()
        self.function = function
        self.places = dict(places)

    def _tensor(self, name: str) -> Tensor | None:
        place = self.places.get(name)
        return None if place is None else place.get()

    @property
    def weight(self) -> Tensor | None:
        """The host's scale."""
        return self._tensor("weight")

    @property
    def bias(self) -> Tensor | None:
        """The host's shift."""
        return self._tensor("bias")

    @property
    def running_mean(self) -> Tensor | None:
        """The host's running mean."""
        return self._tensor("running_mean")

    @property
    def running_var(self) -> Tensor | None:
        """The host's running variance."""
        return self._tensor("running_var")

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The call as the host makes it."""
        return FUNCTIONS[self.function](*args, **kwargs)

    def extra_repr(self) -> str:
        """Function and scale."""
        return f"{self.function}, weight={self.places['weight'].name}"


@functools.cache
def _signature(function: str) -> inspect.Signature:
    return inspect.signature(FUNCTIONS[function])


def arguments_of(function: str, args: Any, kwargs: Any) -> inspect.BoundArguments:
    """Arguments of a functional norm by name."""
    return _signature(function).bind(*args, **kwargs)


class _HandOver(TorchFunctionMode):
    """Hands calls that normalise with the weight of a stand-in to it."""

    def __init__(self, stand_ins: list[FunctionalNorm]) -> None:
        super().__init__()
        self.stand_ins = stand_ins

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for stand_in in self.stand_ins:
            if func is FUNCTIONS[stand_in.function]:
                weight = arguments_of(stand_in.function, args, kwargs).arguments.get("weight")
                if weight is not None and weight is stand_in.weight:
                    return stand_in(*args, **kwargs)
        return func(*args, **kwargs)


class Exposed(MadeOnDemand):
    """A module in whose forward functional norms are handed to their stand-ins."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's forward."""
        stand_ins = [
            module for module in self._modules.values() if isinstance(module, FunctionalNorm)
        ]
        with _HandOver(stand_ins):
            return super().forward(*args, **kwargs)
