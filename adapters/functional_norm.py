"""Norms that are function calls, by their stand-ins."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from passportize.adapters.layer_norm import channels_of_normalized_shape
from passportize.layers.functional_norm import FUNCTIONS, FunctionalNorm, arguments_of
from passportize.layers.layer import PassportLayer

__all__ = ["PassportFunctionalNorm"]


class PassportFunctionalNorm(PassportLayer, FunctionalNorm):
    """A functional norm with a private branch: the same call with other factors."""

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Last or first dimension of the scale."""
        assert isinstance(norm, FunctionalNorm) and norm.weight is not None
        return channels_of_normalized_shape(tuple(norm.weight.shape))

    @classmethod
    def removes_mean(cls, norm: nn.Module) -> bool:
        """A layer norm over the channels alone."""
        assert isinstance(norm, FunctionalNorm) and norm.weight is not None
        return norm.function == "layer_norm" and norm.weight.dim() == 1

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Batch norms, and those with running statistics."""
        assert isinstance(norm, FunctionalNorm)
        return norm.function == "batch_norm" or norm.running_mean is not None

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The host's call, with the given factors and the branch's statistics."""
        call = arguments_of(self.function, (x, *args), kwargs)
        call.arguments["weight"] = scale
        if shift is not None:
            call.arguments["bias"] = shift
        for name in ("running_mean", "running_var"):
            value = getattr(self.passport, name)
            if value is not None:
                call.arguments[name] = value
        return FUNCTIONS[self.function](*call.args, **call.kwargs)
